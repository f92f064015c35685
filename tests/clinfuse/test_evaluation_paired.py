"""Paired tests, their correction, and rank stability on tables whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from clinfuse.errors import InputError
from clinfuse.evaluation import paired_tests, rank_stability
from clinfuse.evaluation.paired import holm


def table(values: dict[str, np.ndarray], metric: str = "ssim", roi: str = "brain") -> pd.DataFrame:
    rows = [
        {"case_id": f"c{i}", "method": m, "preset": "balanced", "metric": metric, "roi": roi}
        | {"value": v, "unit": "1", "status": "ok" if np.isfinite(v) else "failed: x", "seconds": 0.1}
        for m, column in values.items()
        for i, v in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_holm_by_hand() -> None:
    """Holm's textbook: sorted p times 3, 2, 1, kept monotone."""
    p = np.array([0.01, 0.04, np.nan, 0.03])
    assert holm(p) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).size == 0


def test_clear_difference_is_found_and_named_by_direction() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.8, 0.1, 20)
    values = {"ours": base + 0.05 + rng.normal(0, 0.01, 20), "theirs": base, "alike": base[::-1].copy()}
    up = paired_tests(table(values), reference="theirs").set_index("method")
    expected = wilcoxon(values["ours"] - base, zero_method="zsplit").pvalue
    assert up.loc["ours", "p"] == pytest.approx(expected)
    assert up.loc["ours", "p_holm"] == pytest.approx(2 * expected)
    assert up.loc["ours", "better"] == "ours" and up.loc["alike", "better"] == ""
    assert up.loc["ours", "low"] < 0.05 < up.loc["ours", "high"]
    down = paired_tests(table(values, "hd95", "lesion"), reference="theirs").set_index("method")
    assert down.loc["ours", "better"] == "theirs", "a larger distance is worse"
    assert len(paired_tests(table(values))) == 3


def test_too_few_cases_are_said_not_tested() -> None:
    values = {"a": np.array([0.9, 0.8, 0.7]), "b": np.array([0.5, 0.4, 0.3])}
    line = paired_tests(table(values)).iloc[0]
    assert (
        np.isnan(line["p"]) and np.isnan(line["p_holm"]) and line["better"] == "" and "fewer" in line["note"]
    )
    same = {"a": np.arange(8.0), "b": np.arange(8.0)}
    assert paired_tests(table(same)).iloc[0]["p"] == 1.0


def test_failed_cases_leave_the_pair() -> None:
    a = np.linspace(0.5, 0.9, 10)
    b = a - 0.1
    b[3] = np.nan
    line = paired_tests(table({"a": a, "b": b})).iloc[0]
    assert line["n"] == 9 and line["difference"] == pytest.approx(0.1)


def test_rank_stability() -> None:
    rng = np.random.default_rng(1)
    values = {"best": rng.normal(0.9, 0.01, 12), "second": rng.normal(0.8, 0.01, 12)}
    values["twin"] = values["second"] + rng.normal(0, 0.02, 12)
    lines = rank_stability(table(values), resamples=300).set_index("method")
    assert lines.loc["best", "rank"] == 1 and lines.loc["best", "first"] == 1.0
    assert lines.loc["best", "low"] == lines.loc["best", "high"] == 1
    assert lines.loc["second", "low"] == 2 and lines.loc["second", "high"] == 3
    assert 0.3 < lines.loc["best", "tau"] < 1.0
    reversed_ = rank_stability(table(values, "hd95", "lesion"), resamples=50).set_index("method")
    assert reversed_.loc["best", "rank"] == 3
    ties = rank_stability(table({"a": np.ones(4), "b": np.ones(4)}), resamples=20)
    assert ties["rank"].tolist() == [1.5, 1.5]


def test_mixed_runs_are_refused() -> None:
    one = table({"a": np.ones(3), "b": np.zeros(3)})
    with pytest.raises(InputError, match=r"case c0.*several values"):
        paired_tests(pd.concat([one, one]))
    with pytest.raises(InputError, match=r"no such method"):
        paired_tests(one, reference="c")

"""Paired tests, their correction, and rank stability on tables whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, wilcoxon

from clinfuse.errors import InputError
from clinfuse.evaluation import (
    comparison_html,
    decided,
    paired_tests,
    rank_stability,
    rank_table,
    verdicts,
)
from clinfuse.evaluation.paired import holm
from clinfuse.evaluation.ranking import _agreement


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


def test_the_mean_of_a_few_misses_does_not_name_the_loser() -> None:
    """`ours` is nearer in 15 of 16 cases and misses one lesion altogether: by ranks better, in the mean worse."""
    theirs = 10 + np.random.default_rng(1).normal(0, 1, 16)
    ours = theirs - np.linspace(0.5, 1.5, 16)
    ours[3] += 200
    line = paired_tests(table({"ours": ours, "theirs": theirs}, "hd95", "lesion")).iloc[0]
    assert line["difference"] > 0 and line["p_holm"] < 0.05
    assert line["better"] == "" and "differ in direction" in line["note"]


def test_the_coverage_nearest_nominal_is_best_not_the_largest() -> None:
    """`erratic` is as far above 0.90 as below it in turn: its mean is perfect, none of its cases is."""
    rng = np.random.default_rng(2)
    near = 0.90 + rng.uniform(-0.01, 0.01, 20)
    values = {"wide": 0.99 + rng.uniform(-0.005, 0.005, 20), "near": near, "narrow": near - 0.2}
    values["erratic"] = np.tile([0.82, 0.98], 10)
    tests = paired_tests(table(values, "coverage", "head"), reference="near").set_index("method")
    assert (tests["better"] == "near").all() and (tests["difference"] > 0).all()
    assert tests.loc["erratic", "difference"] == pytest.approx(0.08 - np.abs(near - 0.9).mean())
    ranks = rank_stability(table(values, "coverage", "head"), resamples=50).set_index("method")["rank"]
    assert ranks.to_dict() == {"near": 1, "erratic": 2, "wide": 3, "narrow": 4}
    missing = {"a": np.array([0.9, np.nan, 0.8]), "b": np.array([0.8, 0.9, 0.9])}
    assert paired_tests(table(missing, "coverage", "head")).iloc[0]["n"] == 2


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


def test_few_cases_for_many_comparisons_are_said() -> None:
    """Seven cases give p ≥ 2/2⁷ = 1/64: enough for one comparison, not for six."""
    rng = np.random.default_rng(5)
    values = {name: rng.normal(0.1 * k, 0.001, 7) for k, name in enumerate("abcd")}
    many = paired_tests(table(values))
    assert (many["p"] == 2 / 2**7).all() and (many["better"] == "").all()
    assert many["note"].str.contains("too few cases for 6").all()
    untested = {name: np.where(np.arange(7) < 3, rng.normal(0, 1, 7), np.nan) for name in "cdefg"}
    some = paired_tests(table({"a": values["a"], "b": values["b"], **untested}), reference="a").set_index(
        "method"
    )
    assert some.loc["b", "better"] == "b" and some.loc["b", "note"] == "", (
        "what cannot be tested costs nothing"
    )
    one = paired_tests(table({k: values[k] for k in "ab"})).iloc[0]
    assert one["better"] == "b" and one["note"] == ""


def test_agreement_is_kendalls_tau_b() -> None:
    rng = np.random.default_rng(0)
    full, drawn = rng.permutation(6).astype(float), rng.integers(0, 4, (20, 6)).astype(float)
    expected = [kendalltau(full, d).statistic for d in drawn]
    assert _agreement(full, drawn) == pytest.approx(expected)


def test_mixed_runs_are_refused() -> None:
    one = table({"a": np.ones(3), "b": np.zeros(3)})
    with pytest.raises(InputError, match=r"case c0.*several values"):
        paired_tests(pd.concat([one, one]))
    with pytest.raises(InputError, match=r"no such method"):
        paired_tests(one, reference="c")


def test_verdicts_and_ranks_in_words() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0.7, 0.1, 15)
    values = {"good": base + 0.1 + rng.normal(0, 0.01, 15), "fair": base, "same": base.copy()}
    tests = paired_tests(table(values))
    about = verdicts(tests, "fair").iloc[0]
    assert (about["better_than"], about["worse_than"], about["undecided"]) == ("", "good", "same")
    assert verdicts(tests, "good").iloc[0]["better_than"] == "fair, same"
    ranks = rank_table(rank_stability(table(values), resamples=50))
    assert list(ranks.columns) == ["method", "ssim brain"] and ranks.iloc[0]["ssim brain"] == "1 [1, 1]"
    page = comparison_html(table(values), "fair")
    assert "Wilcoxon" in page and "over 15 cases" in page and "1 [1, 1]" in page and "Kendall" in page
    few = comparison_html(table({k: v[:4] for k, v in values.items()}), "fair")
    assert "Not decidable: fewer than 6 cases" in few
    assert comparison_html(table({"a": base}), "a") == ""


@pytest.mark.parametrize("metric", ["ssim", "hd95"])
def test_what_is_decided_names_the_better_and_by_how_much(metric: str) -> None:
    base = np.linspace(0.5, 0.9, 10)
    values = {"first": base, "more": base + np.linspace(0.1, 0.3, 10), "same": base.copy()}
    (line,) = decided(paired_tests(table(values, metric), reference="first")).to_dict("records")
    better, than = ("more", "first") if metric == "ssim" else ("first", "more")
    assert (line["metric"], line["better"], line["than"]) == (f"{metric} brain", better, than)
    size, low, high = (float(part.strip("[],")) for part in line["by"].split())
    assert size == pytest.approx(0.2) and 0.1 < low < 0.2 < high < 0.3
    assert float(line["p (corrected)"]) == pytest.approx(2 * 2 / 2**10, rel=0.05)
    assert decided(paired_tests(table({"a": base, "b": base}))).empty

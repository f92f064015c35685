"""Tests and rankings in words: per metric, whom a method beats, who beats it, and how sure the order is."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from clinfuse.evaluation.paired import paired_tests
from clinfuse.evaluation.ranking import rank_stability

COMPARED = ("ssim", "fsim", "psnr", "dice", "nsd", "hd95", "seam")


def verdicts(tests: pd.DataFrame, method: str) -> pd.DataFrame:
    """One line per metric and region about one method.

    Args:
        tests: from `paired_tests`, all pairs or those with this method.
        method: whom to speak about.

    Returns:
        metric, roi, better_than, worse_than, undecided (names, comma-separated; "not tested" counts as undecided).
    """
    lines = []
    for (metric, roi), group in tests.groupby(["metric", "roi"], sort=False):
        own = group[(group["method"] == method) | (group["other"] == method)]
        if own.empty:
            continue
        others = own["other"].where(own["method"] == method, own["method"])
        lines.append(
            {
                "metric": metric,
                "roi": roi,
                "better_than": ", ".join(others[own["better"] == method]),
                "worse_than": ", ".join(others[own["better"] == others]),
                "undecided": ", ".join(others[own["better"] == ""]),
            }
        )
    return pd.DataFrame(lines, columns=["metric", "roi", "better_than", "worse_than", "undecided"])


def decided(tests: pd.DataFrame) -> pd.DataFrame:
    """The differences that are more than chance, one line each.

    Args:
        tests: from `paired_tests`.

    Returns:
        metric (with its region), better, than (names), by (mean size of the difference with its 95 % interval, in the
        metric's unit), p (corrected); as text.
    """
    lines = [
        {
            "metric": f"{test['metric']} {test['roi']}",
            "better": test["better"],
            "than": test["other"] if test["better"] == test["method"] else test["method"],
            "by": _size(test["difference"], test["low"], test["high"]),
            "p (corrected)": f"{test['p_holm']:.2g}",
        }
        for test in tests[tests["better"] != ""].to_dict("records")
    ]
    return pd.DataFrame(lines, columns=["metric", "better", "than", "by", "p (corrected)"])


def _size(difference: float, low: float, high: float) -> str:
    if difference < 0:
        difference, low, high = -difference, -high, -low
    return f"{difference:.3g} [{low:.3g}, {high:.3g}]"


def shortened(lines: pd.DataFrame, others: int) -> pd.DataFrame:
    """The verdicts for a page: "all" instead of the names of every other method."""

    def short(names: str) -> str:
        return f"all {others}" if names.count(",") + 1 == others and names and others > 1 else names

    words = {"better_than": "better than", "worse_than": "worse than"}
    return lines.assign(
        **{c: lines[c].map(short) for c in ("better_than", "worse_than", "undecided")}
    ).rename(columns=words)


def rank_table(ranking: pd.DataFrame) -> pd.DataFrame:
    """Methods as rows, metric and region as columns: "rank [95 % of redraws]".

    Args:
        ranking: from `rank_stability`.
    """
    cells = ranking.assign(
        column=ranking["metric"] + " " + ranking["roi"],
        text=[
            f"{r:g} [{low:g}, {high:g}]" if np.isfinite(low) else f"{r:g}"
            for r, low, high in zip(ranking["rank"], ranking["low"], ranking["high"], strict=True)
        ],
    )
    columns = list(dict.fromkeys(cells["column"]))
    wide = cells.pivot(index="method", columns="column", values="text")[columns]
    return wide.loc[list(dict.fromkeys(ranking["method"]))].reset_index().rename_axis(columns=None)


def comparison_html(rows: pd.DataFrame, method: str, *, metrics: tuple[str, ...] = COMPARED) -> str:
    """Whom a method beats and how stable the order of all methods is, as an HTML fragment; "" for one method.

    Args:
        rows: columns as `clinfuse.evaluation.rows.COLUMNS`, one preset.
        method: whom to compare with all others.
        metrics: which to compare; each is a family of its own for the correction.
    """
    from clinfuse.report.html import table

    chosen = rows[rows["metric"].isin(metrics)]
    if chosen["method"].nunique() < 2 or method not in set(chosen["method"]):
        return ""
    tests = paired_tests(chosen, reference=method)
    ranking = rank_stability(chosen)
    parts = [
        f"<p>{escape(method)} against each other method: {explanation(tests)}</p>",
        table(shortened(verdicts(tests, method), chosen["method"].nunique() - 1)),
    ]
    if len(ranking):
        tau = ranking.drop_duplicates(["metric", "roi"])["tau"].mean()
        text = (
            "Ranks with their 95 % interval when the cases are redrawn; mean Kendall τ of the redrawn orders"
        )
        text = f"{text} {tau:.2f}."
        if ranking["n"].max() < 2:
            text = "Ranks of a single case: they say nothing of how stable the order is."
        parts += [f"<p>{text}</p>", table(rank_table(ranking))]
    return "".join(parts)


def explanation(tests: pd.DataFrame) -> str:
    """How the comparison was made, and what it cannot show."""
    cases = int(tests["n"].max()) if len(tests) else 0
    text = (
        f"paired Wilcoxon signed-rank tests over {cases} cases, Holm-corrected within each metric, level 5 %."
    )
    notes = [note for note in dict.fromkeys(tests["note"]) if note and note != "identical"]
    return f"{text} Not decidable: {'; '.join(notes)}." if notes else text

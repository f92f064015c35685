"""Tests and rankings in words: per metric, whom a method beats, who beats it, and how sure the order is."""

from __future__ import annotations

import pandas as pd


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


def rank_table(ranking: pd.DataFrame) -> pd.DataFrame:
    """Methods as rows, metric and region as columns: "rank [95 % of redraws]".

    Args:
        ranking: from `rank_stability`.
    """
    cells = ranking.assign(
        column=ranking["metric"] + " " + ranking["roi"],
        text=[
            f"{r:g} [{low:g}, {high:g}]"
            for r, low, high in zip(ranking["rank"], ranking["low"], ranking["high"], strict=True)
        ],
    )
    columns = list(dict.fromkeys(cells["column"]))
    wide = cells.pivot(index="method", columns="column", values="text")[columns]
    return wide.loc[list(dict.fromkeys(ranking["method"]))].reset_index().rename_axis(columns=None)

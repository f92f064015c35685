"""Is the difference more than chance: paired tests between methods on the same cases, corrected for their number."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from clinfuse.errors import InputError
from clinfuse.evaluation.rows import GAP, OK, compared
from clinfuse.evaluation.summary import bootstrap_interval

FEWEST_PAIRS = 6
CONTRADICTION = "the mean and the ranks differ in direction: a few cases outweigh the others"
COLUMNS = (
    "metric",
    "roi",
    "method",
    "other",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "better",
    "note",
)


def paired_tests(
    rows: pd.DataFrame, *, reference: str | None = None, level: float = 0.05, seed: int = 0
) -> pd.DataFrame:
    """Wilcoxon signed-rank tests, Holm-corrected within each metric and region (one family of comparisons).

    Args:
        rows: columns as `clinfuse.evaluation.rows.COLUMNS`, one preset.
        reference: compare every method with this one only; None compares all pairs.
        level: family-wise error level at which a method counts as better.
        seed: of the bootstrap interval of the mean difference.

    Returns:
        metric, roi, method, other, n (cases measured for both), difference (mean of method − other; of their distances
        to nominal for a metric of TWO_SIDED) with its 95 % bootstrap interval low, high; p (two-sided; NaN below 6
        pairs, where no result can be significant), p_holm, better (the better method's name, or "" if
        undecided or if the mean contradicts the ranks), note (why nothing could be decided, if so).

    Raises:
        InputError: no such reference, or a method has two values for one case.

    Reference: Wilcoxon 1945; Holm 1979, Scand. J. Stat. 6(2).
    """
    good = rows[(rows["status"] == OK) & ~rows["metric"].str.startswith(GAP)]
    if reference is not None and reference not in set(rows["method"]):
        raise InputError(
            "no such method to compare with",
            expected=f"one of {sorted(set(rows['method']))}",
            found=reference,
        )
    lines, falls = [], {}
    for (metric, roi), group in good.groupby(["metric", "roi"], sort=False):
        table, falls[str(metric)] = compared(str(metric), case_table(group))
        methods = list(table.columns)
        pairs = (
            combinations(methods, 2)
            if reference is None
            else ((m, reference) for m in methods if m != reference)
        )
        for method, other in pairs:
            if other in table:
                lines.append(_compare(table, str(metric), str(roi), method, other, seed))
    result = pd.DataFrame(lines, columns=list(COLUMNS))
    for _, family in result.groupby(["metric", "roi"], sort=False):
        result.loc[family.index, "p_holm"] = holm(family["p"].to_numpy(dtype=np.float64))
        tested = int(family["p"].notna().sum())
        hopeless = (family["note"] == "") & (tested * 2.0 ** (1 - family["n"]) >= level)
        result.loc[family.index[hopeless], "note"] = f"too few cases for {tested} comparisons"
    for index in result.index[(result["p_holm"] < level) & (result["note"] != CONTRADICTION)]:
        line = result.loc[index]
        first = (float(line["difference"]) < 0) == falls[line["metric"]]
        result.loc[index, "better"] = line["method"] if first else line["other"]
    return result


def case_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Cases × methods of one metric and region; NaN where a method has no value.

    Raises:
        InputError: a method has two values for one case (mixed presets or seeds).
    """
    double = rows.duplicated(["case_id", "method"])
    if double.any():
        first = rows[double].iloc[0]
        raise InputError(
            "a method has several values for one case",
            expected="one preset and one run per method",
            found=f"{first['method']}: {first['metric']}/{first['roi']}",
            case=str(first["case_id"]),
            todo="compare one preset at a time",
        )
    order = list(dict.fromkeys(rows["method"]))
    return rows.pivot(index="case_id", columns="method", values="value")[order].astype(float)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values; NaN (no test was possible) stay NaN and do not count."""
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    scaled = p[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if order.size else []
    return adjusted


def _compare(
    table: pd.DataFrame, metric: str, roi: str, method: str, other: str, seed: int
) -> dict[str, object]:
    both = table[[method, other]].dropna()
    difference = both[method].to_numpy() - both[other].to_numpy()
    low, high = bootstrap_interval(difference, seed=seed)
    mean = float(difference.mean()) if difference.size else np.nan
    p, note = _signed_rank(difference, mean)
    values = (metric, roi, method, other, len(both), mean, low, high, p, np.nan, "", note)
    return dict(zip(COLUMNS, values, strict=True))


def _signed_rank(difference: NDArray[np.float64], mean: float) -> tuple[float, str]:
    """p and a note; a few large differences may outweigh, in the mean, the many small ones that decide by ranks."""
    if difference.size < FEWEST_PAIRS:
        return float("nan"), f"fewer than {FEWEST_PAIRS} cases"
    if not difference.any():
        return 1.0, "identical"
    ranks = float(np.sum(np.sign(difference) * rankdata(np.abs(difference))))
    return float(wilcoxon(difference, zero_method="zsplit").pvalue), CONTRADICTION if ranks * mean < 0 else ""

"""Means over cases with bootstrap confidence intervals; what is empty or failed is counted, never averaged away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinfuse.errors import InputError
from clinfuse.evaluation.rows import COLUMNS, EMPTY, FAILED, GAP, OK

GROUP = ["method", "preset", "metric", "roi"]


def summarise(
    rows: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """One line per method, preset, metric and region.

    Args:
        rows: columns as `clinfuse.evaluation.rows.COLUMNS`.
        confidence: of the percentile bootstrap interval of the mean, resampling cases.
        resamples: bootstrap resamples.
        seed: of the resampling; the same rows give the same interval.

    Returns:
        method, preset, metric, roi, unit, mean, low, high, median, std, n, empty, failed, seconds. Only rows with
        status "ok" enter the mean; n, empty and failed say how many of each kind there were. A single case has
        no interval (NaN).

    Raises:
        InputError: missing columns, or a row "ok" without a finite value.
    """
    missing = [c for c in COLUMNS if c not in rows.columns]
    if missing:
        raise InputError("not a table of metric rows", expected=f"columns {COLUMNS}", found=f"no {missing}")
    bad = rows[(rows["status"] == OK) & ~np.isfinite(rows["value"].astype(float))]
    if len(bad):
        first = bad.iloc[0]
        raise InputError(
            "a row is ok but has no finite value",
            expected="status empty or failed for such a row",
            found=f"{first['metric']}/{first['roi']} of {first['method']}: {first['value']}",
            case=str(first["case_id"]),
        )
    lines = []
    binned = rows["metric"].str.startswith(GAP)
    for key, group in rows[~binned].groupby(GROUP, sort=False, dropna=False):
        values = group.loc[group["status"] == OK, "value"].to_numpy(dtype=np.float64)
        low, high = bootstrap_interval(values, confidence=confidence, resamples=resamples, seed=seed)
        lines.append(
            {
                **dict(zip(GROUP, key, strict=True)),
                "unit": group["unit"].iloc[0],
                "mean": float(values.mean()) if values.size else np.nan,
                "low": low,
                "high": high,
                "median": float(np.median(values)) if values.size else np.nan,
                "std": float(values.std(ddof=1)) if values.size > 1 else np.nan,
                "n": int(values.size),
                "empty": int((group["status"] == EMPTY).sum()),
                "failed": int(group["status"].astype(str).str.startswith(FAILED).sum()),
                "seconds": float(group["seconds"].astype(float).mean()),
            }
        )
    together = [g for _, g in rows[binned].groupby(["method", "preset", "roi"], sort=False, dropna=False)]
    lines += [_pooled(group, confidence, resamples, seed) for group in together]
    return pd.DataFrame(lines)


def _pooled(group: pd.DataFrame, confidence: float, resamples: int, seed: int) -> dict[str, object]:
    """`ece_pooled` of one method and region: Σ over bins of |mean over cases of the bin's signed gap|.

    The calibration error of all cases together, each with the same weight, where `ece` is the mean of each case's
    own. Has no median and standard deviation, as a case alone has none.
    """
    gaps = group.pivot(index="case_id", columns="metric", values="value").to_numpy(dtype=np.float64)
    low, high = bootstrap_interval(
        gaps, confidence=confidence, resamples=resamples, seed=seed, of=lambda mean: np.abs(mean).sum(axis=-1)
    )
    return {
        **{name: group[name].iloc[0] for name in GROUP},
        "metric": "ece_pooled",
        "unit": group["unit"].iloc[0],
        "mean": float(np.abs(gaps.mean(axis=0)).sum()),
        "low": low,
        "high": high,
        "median": np.nan,
        "std": np.nan,
        "n": len(gaps),
        "empty": 0,
        "failed": 0,
        "seconds": float(group["seconds"].astype(float).mean()),
    }


def bootstrap_interval(
    values: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values; NaN for fewer than two.

    Args:
        values: (n,), or (n, k) with `of`.
        confidence, resamples, seed: as of `summarise`.
        of: takes means (resamples, k) to the number (resamples,) whose interval is wanted; None: the mean itself.

    Reference: Efron, Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    draws = draws if of is None else of(draws)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return float(low), float(high)

"""How stable the order of methods is: ranks per case, and how often each keeps its rank when cases are redrawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clinfuse.evaluation.paired import case_table
from clinfuse.evaluation.rows import GAP, OK, compared


def rank_stability(rows: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Ranks of methods per metric and region with their stability under bootstrap of the cases.

    Methods are ranked by their mean, or their mean distance to nominal for a metric of TWO_SIDED (1 is best; ties
    share the mean rank), over the cases that all of them have; a method without a value for a case would else gain or
    lose by the case's difficulty.

    Args:
        rows: columns as `clinfuse.evaluation.rows.COLUMNS`, one preset.
        resamples: bootstrap redraws of the cases.
        seed: of the redraws.

    Returns:
        metric, roi, method, rank (by the mean over cases), mean_rank (mean of its ranks case by case), low, high
        (95 % interval of the rank over redraws; NaN for one case), first (share of redraws in which it is first), tau
        (mean Kendall τ-b of the redrawn order with the full one; the same for all methods of a metric), n (cases).

    Reference: Wiesenfarth et al. 2021, Sci. Rep. 11, Methods and open-source toolkit for analyzing rankings.
    """
    rng = np.random.default_rng(seed)
    lines = []
    good = rows[(rows["status"] == OK) & ~rows["metric"].str.startswith(GAP)]
    for (metric, roi), group in good.groupby(["metric", "roi"], sort=False):
        table = case_table(group).dropna()
        if table.empty or table.shape[1] < 2:
            continue
        measured, falls = compared(str(metric), table)
        values = (1.0 if falls else -1.0) * measured.to_numpy()
        full = _ranks(values.mean(axis=0))
        draws = rng.integers(0, len(values), (resamples, len(values)))
        drawn = np.array([_ranks(values[d].mean(axis=0)) for d in draws])
        tau = float(_agreement(full, drawn).mean())
        by_case = np.array([_ranks(v) for v in values]).mean(axis=0)
        low, high = (
            np.percentile(drawn, [2.5, 97.5], axis=0) if len(values) > 1 else np.full((2, len(full)), np.nan)
        )
        first = (drawn == drawn.min(axis=1, keepdims=True)).mean(axis=0)
        for k, method in enumerate(table.columns):
            lines.append(
                {
                    "metric": metric,
                    "roi": roi,
                    "method": method,
                    "rank": float(full[k]),
                    "mean_rank": float(by_case[k]),
                    "low": float(low[k]),
                    "high": float(high[k]),
                    "first": float(first[k]),
                    "tau": tau,
                    "n": len(values),
                }
            )
    return pd.DataFrame(lines)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, smallest first, ties at their mean."""
    smaller = (values[:, None] > values[None]).sum(axis=1)
    equal = (values[:, None] == values[None]).sum(axis=1)
    return smaller + (equal + 1) / 2


def _agreement(full: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Kendall's τ-b of each redrawn order (R, M) with the full one (M,); 0 where an order is all ties."""
    own = np.sign(full[:, None] - full[None])
    other = np.sign(drawn[:, :, None] - drawn[:, None])
    norm = np.sqrt((own**2).sum() * (other**2).sum(axis=(1, 2)))
    same = (own * other).sum(axis=(1, 2))
    return np.divide(same, norm, out=np.zeros_like(norm), where=norm > 0)

"""Whether predicted doubt is worth anything: calibration, coverage, and how well it ranks the true error.

The error is |F − x₀| per voxel, in image units [0, 1]. Two things can be asked of an uncertainty map: that its
number means what it says (ECE and Brier of the event "error above a stated tolerance", coverage of intervals), and
that it points at the right voxels (sparsification, rank correlation). Empty selections give NaN, which tables show
as `empty`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from clinfuse.errors import InputError
from clinfuse.metrics.checks import same_shape

Floats = NDArray[np.float64]
BINS = 15
FRACTIONS = 50


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram over bins of equal width of the predicted probability.

    Attributes:
        predicted: (B,) mean predicted probability per bin, NaN where a bin is empty.
        observed: (B,) frequency of the event per bin, NaN where a bin is empty.
        count: (B,) predictions per bin.
    """

    predicted: Floats
    observed: Floats
    count: NDArray[np.int64]

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1]: mean |observed − predicted| by count.

        Reference: Naeini, Cooper, Hauskrecht 2015, AAAI.
        """
        full = self.count > 0
        if not full.any():
            return float("nan")
        return float(np.abs(self.gaps).sum())

    @property
    def gaps(self) -> Floats:
        """(B,) signed part of each bin in the error, (observed − predicted) · count / total; 0 for an empty bin."""
        difference = np.nan_to_num(self.observed - self.predicted)
        return difference * self.count / max(1, int(self.count.sum()))


def reliability(probability: NDArray[Any], event: NDArray[Any], bins: int = BINS) -> Reliability:
    """Predicted probability against how often the event happened.

    Args:
        probability: any shape, in [0, 1].
        event: the same shape, truth of the event.
        bins: bins of equal width over [0, 1].

    Raises:
        InputError: probabilities outside [0, 1] or not finite. GeometryError: shapes differ.
    """
    same_shape(probability=probability, event=event)
    p = _probability(probability)
    y = np.asarray(event, dtype=np.float64).ravel()
    index = np.minimum((p * bins).astype(np.intp), bins - 1)
    count = np.bincount(index, minlength=bins)
    safe = np.where(count > 0, count, 1)
    empty = np.where(count > 0, 0.0, np.nan)
    return Reliability(
        predicted=np.bincount(index, p, bins) / safe + empty,
        observed=np.bincount(index, y, bins) / safe + empty,
        count=count.astype(np.int64),
    )


def ece(probability: NDArray[Any], event: NDArray[Any], bins: int = BINS) -> float:
    """Expected calibration error in [0, 1]; arguments as in `reliability`."""
    return reliability(probability, event, bins).ece


def brier(probability: NDArray[Any], event: NDArray[Any]) -> float:
    """Mean squared difference of probability and event, in [0, 1]. Reference: Brier 1950, Mon. Weather Rev. 78."""
    same_shape(probability=probability, event=event)
    p, y = _probability(probability), np.asarray(event, dtype=np.float64).ravel()
    return float(np.square(p - y).mean()) if p.size else float("nan")


def coverage(error: NDArray[Any], half_width: NDArray[Any]) -> float:
    """Share of voxels whose error lies within the interval's half width, in [0, 1].

    Args:
        error, half_width: one shape, image units, at least 0.
    """
    same_shape(error=error, half_width=half_width)
    inside = np.asarray(error) <= np.asarray(half_width)
    return float(inside.mean()) if inside.size else float("nan")


@dataclass(frozen=True, kw_only=True)
class Sparsification:
    """Mean error of the voxels that remain when the worst are removed.

    Attributes:
        removed: (K,) fraction removed, from 0 to just below 1.
        by_uncertainty: (K,) mean remaining error when the most uncertain go first.
        by_error: (K,) the same when the largest errors go first: the best any ranking could do.
        mean_error: the error without removal, which is also what a random ranking keeps.
    """

    removed: Floats
    by_uncertainty: Floats
    by_error: Floats
    mean_error: float

    @property
    def ause(self) -> float:
        """Area between both curves, in image units; 0 for a perfect ranking."""
        return _area(self.by_uncertainty - self.by_error, self.removed)

    @property
    def ratio(self) -> float:
        """That area over a random ranking's: 0 perfect, 1 useless, above 1 misleading; NaN if all errors are equal."""
        worst = _area(self.mean_error - self.by_error, self.removed)
        return self.ause / worst if worst > 1e-9 * self.mean_error else float("nan")


def sparsification(
    error: NDArray[Any], uncertainty: NDArray[Any], fractions: int = FRACTIONS
) -> Sparsification:
    """Sparsification curves of an uncertainty map.

    Args:
        error: any shape, at least 0; at least one value.
        uncertainty: the same shape, larger is less sure; ties share their place evenly.
        fractions: points on the curves.

    Raises:
        GeometryError: shapes differ. InputError: nothing to measure.

    Reference: Ilg et al. 2018, ECCV, Uncertainty estimates for optical flow (sparsification error).
    """
    same_shape(error=error, uncertainty=uncertainty)
    e = np.asarray(error, dtype=np.float64).ravel()
    if not e.size:
        raise InputError("no voxels to rank", expected="at least one", found="none")
    removed = np.arange(fractions) / fractions
    keep = np.maximum(np.ceil((1 - removed) * e.size).astype(np.intp), 1)
    surest_first = _tie_means(np.asarray(uncertainty, dtype=np.float64).ravel(), e)
    best = np.sort(e)
    return Sparsification(
        removed=removed,
        by_uncertainty=np.cumsum(surest_first)[keep - 1] / keep,
        by_error=np.cumsum(best)[keep - 1] / keep,
        mean_error=float(e.mean()),
    )


def rank_correlation(error: NDArray[Any], uncertainty: NDArray[Any]) -> float:
    """Spearman's ρ of doubt and error, in [−1, 1]; NaN for fewer than two values or a constant map.

    Where a share s of the errors is one and the same (0, where F is its source), no doubt without ties has
    more than √(1 − s³); a sparsification error has no such bound.
    """
    same_shape(error=error, uncertainty=uncertainty)
    x = rankdata(np.asarray(error).ravel())
    y = rankdata(np.asarray(uncertainty).ravel())
    if x.size < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _probability(values: NDArray[Any]) -> Floats:
    p = np.asarray(values, dtype=np.float64).ravel()
    if p.size and not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        raise InputError(
            "not probabilities", expected="finite values in [0, 1]", found=f"[{p.min():g}, {p.max():g}]"
        )
    return p


def _tie_means(uncertainty: Floats, error: Floats) -> Floats:
    """Errors from the surest voxel to the least sure; equal doubts get their common mean error."""
    order = np.argsort(uncertainty, kind="stable")
    doubt, sorted_error = uncertainty[order], error[order]
    starts = np.flatnonzero(np.r_[True, doubt[1:] != doubt[:-1]])
    sizes = np.diff(np.r_[starts, doubt.size])
    return np.repeat(np.add.reduceat(sorted_error, starts) / sizes, sizes)


def _area(values: Floats, positions: Floats) -> float:
    return float(np.trapezoid(values, positions))

"""Pareto fronts as numbers: who is non-dominated, how much is dominated, where the knee is, what all runs attain.

Legend: every array of losses is (points, objectives), float64, and less is better (see `goals.losses`).
Non-dominance and hypervolume are Optuna's own; rows with a NaN or an infinity are never on a front.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError
from clinfuse_sweeps.goals import LossArray

REFERENCE_MARGIN = 0.1


def usable(losses: LossArray) -> NDArray[np.bool_]:
    """(points,) whether every objective of the row is finite."""
    finite: NDArray[np.bool_] = np.all(np.isfinite(losses), axis=1)
    return finite


def non_dominated(losses: LossArray) -> NDArray[np.bool_]:
    """(points,) whether no other point is at least as good everywhere and better somewhere; twins both count."""
    from optuna.study._multi_objective import _is_pareto_front

    keep = usable(losses)
    if keep.any():
        keep[keep] = _is_pareto_front(losses[keep], assume_unique_lexsorted=False)
    return keep


def hypervolume(losses: LossArray, reference: NDArray[np.float64]) -> float:
    """Volume that the points dominate up to the reference point; points beyond it add nothing.

    Raises:
        InputError: the reference point is not finite or has another number of objectives.

    Reference: Zitzler, Thiele 1999; computed by Optuna (While et al. 2012, WFG).
    """
    from optuna._hypervolume import compute_hypervolume

    reference = np.asarray(reference, dtype=np.float64)
    if reference.shape != losses.shape[1:] or not np.isfinite(reference).all():
        raise InputError(
            "the reference point cannot be used",
            expected=f"{losses.shape[1]} finite values",
            found=f"{reference.tolist()}",
        )
    inside = losses[usable(losses) & (losses <= reference).all(axis=1)]
    return float(compute_hypervolume(inside, reference)) if len(inside) else 0.0


def common_reference(fronts: Sequence[LossArray], margin: float = REFERENCE_MARGIN) -> NDArray[np.float64]:
    """A reference point (objectives,) worse than every finite point of all fronts by a share of their range.

    Raises:
        InputError: no finite point at all.
    """
    points = np.concatenate([front[usable(front)] for front in fronts]) if fronts else np.empty((0, 0))
    if not len(points):
        raise InputError("no trial has all objectives", expected="at least one finite point", found="none")
    worst, best = points.max(axis=0), points.min(axis=0)
    span = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1e-3))
    return worst + margin * span


def knee(front: LossArray) -> int | None:
    """Row of the knee: the compromise after which little is won for what is given up.

    Objectives are scaled to [0, 1] over the front. With two objectives the knee lies farthest from the chord
    between the front's ends, on the side of the ideal; if no point lies there (a straight or hollow front), or
    with more objectives, it is the point nearest to the ideal (0, …, 0). None for an empty front.

    Reference: Das 1999 (normal-boundary characterisation of knees).
    """
    rows = np.flatnonzero(usable(front))
    if not len(rows):
        return None
    points = front[rows]
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    if scaled.shape[1] == 2 and len(rows) > 2:
        bulge = 1.0 - scaled.sum(axis=1)  # the ends lie on x + y = 1; distance is this over √2
        if bulge.max() > 1e-9:
            return int(rows[bulge.argmax()])
    return int(rows[np.linalg.norm(scaled, axis=1).argmin()])


def coverage(first: LossArray, second: LossArray) -> float:
    """Share of the second set's points that some point of the first equals or dominates (C-metric), in [0, 1].

    NaN when the second set has no finite point: there is nothing to cover.

    Reference: Zitzler, Thiele 1999.
    """
    a, b = first[usable(first)], second[usable(second)]
    if not len(b):
        return float("nan")
    covered = (a[:, None, :] <= b[None, :, :]).all(axis=2).any(axis=0) if len(a) else np.zeros(len(b))
    return float(np.mean(covered))


def staircase(front: LossArray) -> LossArray:
    """Corners (points, 2) of the boundary of what a two-objective front dominates, from left to right."""
    points = np.unique(front[non_dominated(front)], axis=0)
    if not len(points):
        return np.empty((0, 2))
    corners = [points[0]]
    for left, right in pairwise(points):
        corners += [np.array([right[0], left[1]]), right]
    return np.array(corners)


def attainment(fronts: Sequence[LossArray], level: float = 0.5) -> LossArray:
    """Points (points, 2) of the surface attained by at least this share of runs (two objectives).

    At every first-objective value x that some run reaches, the second is the smallest y such that at least
    ⌈level · runs⌉ runs have a point ≤ (x, y). level = 1: attained by all runs; 0.5: the median run.

    Raises:
        InputError: level not in (0, 1], or fronts with another number of objectives.

    Reference: Grunert da Fonseca, Fonseca, Hall 2001 (empirical attainment function).
    """
    if not 0 < level <= 1:
        raise InputError("the attainment level is not usable", expected="0 < level <= 1", found=f"{level=}")
    if any(front.ndim != 2 or front.shape[1] != 2 for front in fronts):
        raise InputError("attainment needs two objectives", found=str([front.shape for front in fronts]))
    runs = [front[usable(front)] for front in fronts]
    need = int(np.ceil(level * len(runs) - 1e-9))
    points = []
    for x in np.unique(np.concatenate([run[:, 0] for run in runs])) if runs else []:
        best = sorted(run[run[:, 0] <= x, 1].min(initial=np.inf) for run in runs)
        points.append((x, best[need - 1]))
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[usable(table)]
    return table[non_dominated(table)]


def hypervolume_interval(
    losses: LossArray, reference: NDArray[np.float64], *, draws: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the hypervolume, resampling the trials.

    A resample can only lose trials, so the upper end never exceeds the value itself: read the interval as how
    much of the hypervolume hangs on single lucky trials.
    """
    rng = np.random.default_rng(seed)
    rows = losses[usable(losses)]
    if not len(rows):
        return 0.0, 0.0
    values = [hypervolume(rows[rng.integers(0, len(rows), len(rows))], reference) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""A monotone piecewise-linear map kept as its knots, fitted by isotonic regression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError

BINS = 200
"""Samples are averaged in at most this many bins of equal count, so that no single voxel makes a step."""


@dataclass(frozen=True)
class Knots:
    """y(x), linear between knots and constant beyond the first and last.

    Attributes:
        x: knots, strictly ascending.
        y: values, never descending.

    Raises:
        InputError: different lengths, no knot, non-finite, or out of order.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        sound = len(self.x) == len(self.y) > 0 and all(map(math.isfinite, (*self.x, *self.y)))
        rising = all(a < b for a, b in zip(self.x, self.x[1:], strict=False))
        if not sound or not rising or any(a > b for a, b in zip(self.y, self.y[1:], strict=False)):
            raise InputError(
                "the knots do not make a monotone map",
                expected="as many finite x as y, x ascending, y never descending",
                found=f"{len(self.x)} x and {len(self.y)} y",
            )

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """y at values of any shape."""
        return np.asarray(np.interp(values, self.x, self.y))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Knots:
        """The map stored as {"x": […], "y": […]}."""
        return cls(tuple(map(float, values["x"])), tuple(map(float, values["y"])))


def isotonic(x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any]) -> Knots:
    """The monotone map that is closest to y in weighted squares, with each level pool as one knot at its mean.

    Between the knots it rises, so what the pools could not tell apart keeps its order, and it begins at (0, 0): no
    spread, no error. As steps, voxels with less spread than nearly all seen in fitting would all be told the same.

    Args:
        x, y, weight: (n,) each, x and y at least 0, weight > 0.

    References: Zadrozny and Elkan 2002 (isotonic calibration); Oron and Flournoy, Centered isotonic regression,
    Statistics in Biopharmaceutical Research 9(3), 2017.
    """
    groups = _bins(x)
    total = np.array([weight[g].sum() for g in groups])
    means = np.array([[np.average(v[g], weights=weight[g]) for g in groups] for v in (x, y)])
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit_transform(means[0], means[1], sample_weight=total)
    levels, pool = np.unique(fitted, return_inverse=True)
    centres = np.bincount(pool, total * means[0]) / np.bincount(pool, total)
    first = 1 if centres[0] <= 0 else 0
    return Knots((0.0, *centres.tolist())[first:], (0.0, *levels.tolist())[first:])


def _bins(x: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Indices in at most BINS groups of about equal count, x ascending from group to group; equal x share one."""
    order = np.argsort(x, kind="stable")
    ranked = x[order]
    ends = np.cumsum([len(group) for group in np.array_split(order, min(BINS, len(order)))])[:-1]
    cuts = np.unique(np.searchsorted(ranked, ranked[ends]))
    return np.split(order, cuts[cuts > 0])

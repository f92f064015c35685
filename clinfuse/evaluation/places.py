"""Places in a volume, voxel coordinates (d, h, w): where heat points, a mask's centre, what is inside, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from clinfuse.case import FloatArray

Point = tuple[float, float, float]


def located(maps: FloatArray, names: Sequence[str], spacing: Point, sigma_mm: float) -> dict[str, Point]:
    """Each landmark's place (d, h, w): the centroid of its heat about the highest point of the smoothed heat.

    Args:
        maps: (K, D, H, W) in [0, 1].
    """
    found = {}
    for name, heat in zip(names, maps, strict=True):
        smooth = gaussian_filter(heat, [sigma_mm / 2 / s for s in spacing])
        top = np.unravel_index(int(smooth.argmax()), smooth.shape)
        box = tuple(
            slice(max(0, math.ceil(t - 2 * sigma_mm / s)), int(t + 2 * sigma_mm / s) + 1)
            for t, s in zip(top, spacing, strict=True)
        )
        weight = smooth[box].astype(np.float64)
        grid = np.meshgrid(
            *[np.arange(b.start, b.start + n) for b, n in zip(box, weight.shape, strict=True)], indexing="ij"
        )
        d, h, w = ((weight * axis).sum() / weight.sum() for axis in grid)
        found[name] = (float(d), float(h), float(w))
    return found


def centre(mask: NDArray[np.generic]) -> Point | None:
    """Centroid (d, h, w) of a mask, or None if it is empty."""
    inside = np.argwhere(mask)
    if not len(inside):
        return None
    d, h, w = inside.mean(axis=0)
    return float(d), float(h), float(w)


def inside(point: Point, shape: Sequence[int]) -> bool:
    """Whether a point lies within a voxel of a volume of this shape; voxel n reaches from n − ½ to n + ½."""
    return all(-0.5 <= at <= n - 0.5 for at, n in zip(point, shape, strict=True))


def apart_mm(a: Point, b: Point, spacing: Point) -> float:
    """Distance in mm of two voxel coordinates."""
    return math.dist(
        [x * s for x, s in zip(a, spacing, strict=True)], [x * s for x, s in zip(b, spacing, strict=True)]
    )

"""Grids in millimetres and smooth random fields on them, drawn so that every spacing sees the same anatomy.

Random fields are drawn on a coarse lattice fixed in millimetres and interpolated by cubic splines, so a patient
simulated at 1 mm is the patient simulated at 2 mm, seen more finely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from clinfuse.case import FloatArray

Vector3 = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular voxel grid along the anatomical axes.

    Attributes:
        shape: (D, H, W) voxels.
        spacing: (D, H, W) mm.
        origin: (z, y, x) mm, RAS+, of the centre of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing: Vector3
    origin: Vector3

    @cached_property
    def axes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Voxel-centre coordinates in mm along z, y and x."""
        z, y, x = (
            (start + step * np.arange(count)).astype(np.float32)
            for start, step, count in zip(self.origin, self.spacing, self.shape, strict=True)
        )
        return z, y, x

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) map from voxel index (w, h, d, 1) to RAS+ (x, y, z, 1) mm."""
        matrix = np.diag([*self.spacing[::-1], 1.0])
        matrix[:3, 3] = self.origin[::-1]
        return matrix

    def mesh(self) -> FloatArray:
        """(3, D, H, W) float32: the (z, y, x) mm coordinates of every voxel centre."""
        z, y, x = self.axes
        out = np.empty((3, *self.shape), np.float32)
        out[0], out[1], out[2] = z[:, None, None], y[None, :, None], x[None, None, :]
        return out

    def to_index(self, points: FloatArray) -> FloatArray:
        """Fractional voxel indices (3, N) of points (3, N) given as (z, y, x) mm."""
        column = (3,) + (1,) * (points.ndim - 1)
        origin = np.asarray(self.origin, np.float32).reshape(column)
        spacing = np.asarray(self.spacing, np.float32).reshape(column)
        return (points - origin) / spacing


def covering(low: Vector3, high: Vector3, spacing: Vector3) -> Grid:
    """The grid of the given spacing whose voxels fill the box from `low` to `high`, (z, y, x) mm.

    The count along each axis is rounded to a multiple of 8, so that networks and wavelets need no padding.
    """
    counts = [max(8, 8 * round((b - a) / s / 8)) for a, b, s in zip(low, high, spacing, strict=True)]
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    origin = [m - s * (n - 1) / 2 for m, s, n in zip(middle, spacing, counts, strict=True)]
    return Grid(
        shape=(counts[0], counts[1], counts[2]), spacing=spacing, origin=(origin[0], origin[1], origin[2])
    )


@lru_cache(maxsize=128)
def _spline_matrix(knots: tuple[float, ...], start: float, step: float, count: int) -> FloatArray:
    """(count, K) float32: cubic-spline interpolation from K knots to `count` evenly spaced points."""
    points = np.clip(start + step * np.arange(count), knots[0], knots[-1])
    spline = make_interp_spline(np.asarray(knots), np.eye(len(knots)), k=min(3, len(knots) - 1))
    return np.asarray(spline(points), np.float32)


def upsample(coarse: FloatArray, lattice: Grid, grid: Grid) -> FloatArray:
    """Values (d, h, w) on a coarse lattice, cubic-spline interpolated onto a grid (D, H, W), float32.

    Points outside the lattice take the value at its border.
    """
    matrices = [
        _spline_matrix(
            tuple(float(v) for v in lattice.axes[axis]),
            grid.origin[axis],
            grid.spacing[axis],
            grid.shape[axis],
        )
        for axis in range(3)
    ]
    out = np.tensordot(matrices[0], np.asarray(coarse, np.float32), axes=(1, 0))
    return np.matmul(np.matmul(matrices[1], out), matrices[2].T)


def lattice_over(grid: Grid, knot_mm: float) -> Grid:
    """A coarse lattice with knots about `knot_mm` apart that covers the field of view of `grid`.

    It depends on the field of view rounded to whole centimetres, hence hardly ever on the spacing.
    """
    extent = [np.ceil(n * s / 10 - 1e-6) * 10 for n, s in zip(grid.shape, grid.spacing, strict=True)]
    middle = [o + s * (n - 1) / 2 for o, s, n in zip(grid.origin, grid.spacing, grid.shape, strict=True)]
    counts = [max(4, int(np.ceil(e / knot_mm)) + 1) for e in extent]
    steps = [float(e / (n - 1)) for e, n in zip(extent, counts, strict=True)]
    start = [m - e / 2 for m, e in zip(middle, extent, strict=True)]
    return Grid(
        shape=(counts[0], counts[1], counts[2]),
        spacing=(steps[0], steps[1], steps[2]),
        origin=(float(start[0]), float(start[1]), float(start[2])),
    )


def smooth_noise(grid: Grid, rng: np.random.Generator, knot_mm: float | Sequence[float]) -> FloatArray:
    """A smooth random field (D, H, W), about zero mean and unit standard deviation, |value| ≤ about 3.

    Args:
        grid: where it is wanted.
        rng: the stream to draw from.
        knot_mm: distance of the lattice knots in mm, i.e. about half a wavelength; several values give a sum of
            octaves, each weighted in proportion to its knot distance.
    """
    scales = [float(knot_mm)] if isinstance(knot_mm, (int, float)) else [float(k) for k in knot_mm]
    total = np.zeros(grid.shape, np.float32)
    for scale in scales:
        lattice = lattice_over(grid, scale)
        draws = rng.uniform(-1.732, 1.732, lattice.shape).astype(np.float32)
        total += (scale / scales[0]) * 1.45 * upsample(draws, lattice, grid)
    norm = float(np.sqrt(sum((scale / scales[0]) ** 2 for scale in scales)))
    return total / np.float32(norm)


def soft(distance: NDArray[np.floating[Any]], width_mm: float) -> FloatArray:
    """Fraction of a voxel inside a surface: 1 at signed distance ≤ −w/2 (mm), 0 at ≥ w/2."""
    t = np.asarray(distance, np.float32) / np.float32(-width_mm)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)


def bump(distance: NDArray[np.floating[Any]], radius_mm: float) -> FloatArray:
    """A Gaussian bump exp(−(d/r)²) of a distance in mm."""
    return np.asarray(np.exp(-np.square(distance / np.float32(radius_mm))), np.float32)

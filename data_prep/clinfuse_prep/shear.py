"""Grids whose axes are not at right angles, as of a CT whose gantry tilt nobody undid, and upright ones over them."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from clinfuse_prep.geometry import ROUNDING, Affine, Grid

MOST_SHEAR_MM = 0.1
"""Up to here axes count as at right angles: files keep few digits."""


def squared(affine: Affine) -> Affine:
    """The affine (4, 4) with its axes turned to the nearest ones at right angles; spacings and origin stay."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    out = affine.copy()
    out[:3, :3] = u @ v * spacing
    return out


def shear_mm(grid: Grid) -> float:
    """How far squaring a grid's axes would move one of its voxels against its first, at most, in mm."""
    steps = _ends(grid, 0.0) - _ends(grid, 0.0)[0]
    lean = steps @ (grid.affine - squared(grid.affine))[:3, :3].T
    return float(np.linalg.norm(lean, axis=1).max())


def upright(grid: Grid) -> Grid:
    """The grid itself if its axes are at right angles, else one of which they are and that covers its field of view.

    Of the two axes nearest to a right angle (rows and columns of a tilted scan) the first keeps its direction and
    the second their plane; the third is their normal. Spacings are those of the old voxels along the new axes, so
    that a tilted scan's slices stay whole and move in their own planes alone.
    """
    if shear_mm(grid) <= MOST_SHEAR_MM:
        return grid
    order = _nearest_first(grid.affine[:3, :3])
    turned, steps = np.linalg.qr(grid.affine[:3, order])
    signs = np.sign(np.diag(steps))
    axes, spacing = np.empty((3, 3)), np.empty(3)
    axes[:, order], spacing[order] = turned * signs, np.abs(np.diag(steps))
    borders = (_ends(grid, 0.5) @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ axes / spacing
    low, high = borders.min(axis=0), borders.max(axis=0)
    w, h, d = (int(n) for n in np.ceil(high - low - ROUNDING))
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = affine[:3, :3] @ (low + 0.5)
    return Grid((d, h, w), affine)


def _nearest_first(axes: NDArray[np.float64]) -> list[int]:
    """The two columns (x, y, z) nearest to a right angle in their order, then the third; of equals, z is the third."""
    unit = axes / np.linalg.norm(axes, axis=0)
    lean = np.abs(unit.T @ unit).round(3)
    first, second = min(combinations(range(3), 2), key=lambda pair: lean[pair])
    return [first, second, 3 - first - second]


def _ends(grid: Grid, beyond: float) -> NDArray[np.float64]:
    """The eight (x, y, z) indices at a grid's ends, so many voxels beyond the outermost centres: (8, 3)."""
    return np.array(list(product(*[(-beyond, n - 1 + beyond) for n in grid.shape[::-1]])))

"""Where voxels lie: resampling by affine, and the way back to the source (`clinfuse.orientation` turns axes).

Legend: a *source* array is in its file's own voxel order (i, j, k) with affine (i, j, k, 1) → RAS+ mm. A
*grid* array is (D, H, W) = (z, y, x) with affine (x, y, z, 1) → RAS+ mm, axes nearest to R, A and S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import Case
from clinfuse.errors import GeometryError
from clinfuse.orientation import from_ras, to_ras

Array = NDArray[Any]
Affine = NDArray[np.float64]
HALF, ALMOST_ONE = 0.5, 0.99
"""Voxels by which an image reaches beyond its outermost voxel centres, and by which a case's may."""
ROUNDING = 1e-3
"""Voxels by which affines of stored images lie off, as files keep few digits."""


@dataclass(frozen=True)
class Grid:
    """A (D, H, W) voxel grid: shape and affine (x, y, z, 1) → RAS+ mm."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(D, H, W) in mm."""
        w, h, d = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether shapes are equal and no voxel centre lies further apart than the tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array([[x, y, z, 1.0] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
        corners[:, :3] *= np.array(self.shape[::-1]) - 1
        gap = corners @ (self.affine - other.affine).T
        return bool(np.abs(gap[:, :3]).max() <= tolerance_mm)


def resample(
    array: Array,
    grid: Grid,
    target: Grid,
    *,
    order: Literal[0, 1, 3] = 1,
    fill: float = 0.0,
    smooth: bool = True,
    reach: float = HALF,
) -> Array:
    """Sample an array on another grid by the affines alone; up to its outer borders the outermost voxels count.

    Args:
        array: (D, H, W) on `grid`; order 0 for masks, 1 or 3 for images.
        fill: value outside the field of view.
        smooth: blur first where the target is coarser (half a target voxel), so that nothing aliases.
        reach: see `covered`.

    Returns:
        (D, H, W) on `target`, same dtype for order 0, else float32.
    """
    if grid.same_as(target):
        return array
    source = array if order == 0 else array.astype(np.float32, copy=False)
    if order > 0 and smooth:
        ratio = np.array(target.spacing) / np.array(grid.spacing)
        sigma = np.where(ratio > 1.2, 0.42 * np.sqrt(np.maximum(ratio**2 - 1, 0)), 0)
        if sigma.any():
            source = ndimage.gaussian_filter(source, sigma, mode="nearest")
    out = np.empty(target.shape, source.dtype)
    matrix, offset = _index_map(grid, target)
    ndimage.affine_transform(source, matrix, offset, output=out, order=order, mode="nearest")
    np.putmask(out, ~covered(grid, target, reach), fill)
    return out


def covered(grid: Grid, target: Grid, reach: float = HALF) -> NDArray[np.bool_]:
    """Which of the target's voxel centres lie in the grid's field of view; made plane by plane, to save memory.

    Args:
        reach: how far that goes beyond the outermost voxel centres, in voxels: half a one is to their borders.

    Returns:
        (D, H, W) on `target`.
    """
    matrix, offset = _index_map(grid, target)
    inside = np.ones(target.shape, bool)
    y, x = np.arange(target.shape[1])[:, None], np.arange(target.shape[2])
    for z in range(len(inside)):
        for (by_z, by_y, by_x), start, n in zip(matrix, offset, grid.shape, strict=True):
            off_middle = np.abs((start + by_z * z - (n - 1) / 2) + by_y * y + by_x * x)
            inside[z] &= off_middle <= (n - 1) / 2 + reach + ROUNDING
    return inside


def _index_map(grid: Grid, target: Grid) -> tuple[Affine, NDArray[np.float64]]:
    """Matrix (3, 3) and offset (3,) from an index (z, y, x) of the target to one of the grid."""
    flip = np.eye(4)[[2, 1, 0, 3]]
    zyx = flip @ np.linalg.inv(grid.affine) @ target.affine @ flip
    return zyx[:3, :3], zyx[:3, 3]


def resample_mask(mask: Array, grid: Grid, target: Grid) -> NDArray[np.uint8]:
    """A binary mask on another grid: linear interpolation of membership, kept where it is at least one half."""
    if grid.same_as(target):
        return (mask > 0).astype(np.uint8)
    soft = resample((mask > 0).astype(np.float32), grid, target, order=1, smooth=False)
    return (soft >= 0.5).astype(np.uint8)


def overlap(grid: Grid, target: Grid) -> float:
    """Share of the target's voxels that lie inside the grid's field of view, 0 to 1 (on a coarse raster)."""
    d, h, w = (min(n, 24) for n in target.shape)
    steps = [(n - 1) / max(1, m - 1) for n, m in zip(target.shape[::-1], (w, h, d), strict=True)]
    raster = Grid((d, h, w), target.affine @ np.diag([*(step or 1.0 for step in steps), 1.0]))
    return float(covered(grid, raster).mean())


def with_spacing(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """The same field of view and directions with another (D, H, W) spacing; outer voxel borders stay in place."""
    old, new = np.array(grid.spacing), np.array(spacing_mm, float)
    shape = np.maximum(1, np.round(np.array(grid.shape) * old / new)).astype(int)
    scale = (new / old)[::-1]
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * scale
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ ((scale - 1) / 2)
    d, h, w = (int(n) for n in shape)
    return Grid((d, h, w), affine)


def to_source_grid(
    volume: NDArray[np.float32], case: Case, *, order: Literal[0, 1, 3] = 1
) -> tuple[Array, Affine]:
    """A volume of the case in the anatomy file's own voxel order, so that outputs overlay it exactly.

    Where the case's voxels do not divide the file's field of view, up to half a one is missing at its end: what lies
    there has the value of the outermost.

    Args:
        volume: (D, H, W) on the case's grid.
        case: carries `attrs["source_geometry"]` (written by prep).
        order: interpolation if the case was resampled to another spacing (0 for masks).

    Returns:
        The array (I, J, K) in source order and the source's affine (i, j, k, 1) → RAS+ mm. For PNG slices
        I is the column, J the row and K the slice: `array[:, :, k].T` is the picture.

    Raises:
        GeometryError: the case does not say where it came from, or the volume is not on its grid.
    """
    source = case.attrs.get("source_geometry")
    if source is None:
        raise GeometryError(
            "the case has no source geometry", expected="a case made by prep", case=case.case_id
        )
    if volume.shape != case.shape:
        raise GeometryError(
            "the volume is not on the case's grid",
            expected=f"shape {case.shape}",
            found=f"{volume.shape}",
            case=case.case_id,
        )
    i, j, k = (int(n) for n in source["shape"])
    affine = np.array(source["affine"], dtype=np.float64)
    grid_affine = to_ras(np.broadcast_to(np.float32(0), (i, j, k)), affine)
    native = Grid((grid_affine[0].shape[0], grid_affine[0].shape[1], grid_affine[0].shape[2]), grid_affine[1])
    here = Grid(case.shape, case.affine)
    on_native = resample(volume, here, native, order=order, reach=ALMOST_ONE)
    return np.ascontiguousarray(from_ras(on_native, (i, j, k), affine)), affine

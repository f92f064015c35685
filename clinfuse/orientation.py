"""Axes: from a file's own voxel order to the RAS+ grid and back, without interpolation.

Legend: a *source* array is in its file's own voxel order (i, j, k) with affine (i, j, k, 1) → RAS+ mm. A
*grid* array is (D, H, W) = (z, y, x) with affine (x, y, z, 1) → RAS+ mm, axes nearest to R, A and S.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import GeometryError

Array = NDArray[Any]
Affine = NDArray[np.float64]


def to_ras(array: Array, affine: Affine) -> tuple[Array, Affine]:
    """Reorient without interpolation.

    Args:
        array: (I, J, K), or (I, J, K, channels), in source order.
        affine: (i, j, k, 1) → RAS+ mm.

    Returns:
        The (D, H, W) or (D, H, W, channels) array (a view where possible) and its affine (x, y, z, 1) → RAS+ mm.
    """
    orientation = nib.io_orientation(affine)
    turned = nib.apply_orientation(array, orientation)
    back = nib.orientations.inv_ornt_aff(orientation, array.shape[:3])
    return np.swapaxes(turned, 0, 2), affine @ back


def from_ras(volume: Array, source_shape: tuple[int, int, int], source_affine: Affine) -> Array:
    """Inverse of `to_ras`: a (D, H, W) array in the order (I, J, K) of the source.

    Raises:
        GeometryError: the source is of another shape.
    """
    orientation = nib.io_orientation(source_affine)
    inverse = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), orientation)
    back = nib.apply_orientation(np.transpose(volume, (2, 1, 0)), inverse)
    if back.shape != tuple(source_shape):
        raise GeometryError(
            "the volume does not belong to this source",
            expected=f"shape {source_shape}",
            found=str(back.shape),
        )
    return back

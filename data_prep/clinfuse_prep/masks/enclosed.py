"""How far a voxel is walled in by bone: the share of directions in its slice in which a ray meets bone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse_prep.masks.morphology import Mask, Spacing

WORKING_MM = 2.5


def enclosure(bone: Mask, spacing_mm: Spacing, directions: int = 16) -> NDArray[np.float32]:
    """Share of in-plane directions blocked by bone.

    Args:
        bone: (D, H, W). directions: even number of rays, equally spaced over the circle.

    Returns:
        (D, H, W) float32 in [0, 1], computed on a 2.5 mm in-plane raster.
    """
    zoom = [min(1.0, s / WORKING_MM) for s in spacing_mm[1:]]
    coarse = np.stack([ndimage.zoom(plane.astype(np.float32), zoom, order=1) > 0.25 for plane in bone])
    blocked = np.zeros(coarse.shape, np.float32)
    for half in range(directions // 2):
        blocked += _both_senses(coarse, 180.0 * half / (directions // 2))
    share = blocked / directions
    back = [n / m for n, m in zip(bone.shape[1:], share.shape[1:], strict=True)]
    return np.stack([_fit(ndimage.zoom(plane, back, order=1), bone.shape[1:]) for plane in share])


def _both_senses(mask: Mask, degrees: float) -> NDArray[np.float32]:
    """For one axis: 0, 1 or 2 senses in which bone lies ahead."""
    turned = ndimage.rotate(mask.astype(np.uint8), degrees, axes=(1, 2), order=0, reshape=True)
    ahead = np.maximum.accumulate(turned, axis=2)
    behind = np.maximum.accumulate(turned[:, :, ::-1], axis=2)[:, :, ::-1]
    back = ndimage.rotate((ahead + behind).astype(np.float32), -degrees, axes=(1, 2), order=0, reshape=True)
    height, width = mask.shape[1:]
    top, left = (back.shape[1] - height) // 2, (back.shape[2] - width) // 2
    return back[:, top : top + height, left : left + width]


def _fit(plane: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    out = np.zeros(shape, np.float32)
    h, w = min(shape[0], plane.shape[0]), min(shape[1], plane.shape[1])
    out[:h, :w] = plane[:h, :w]
    return out

"""Where the patient is: the head without air, table and head holder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from clinfuse_prep.masks.morphology import Mask, Spacing, closed, dilate, fill_planes, largest, opened

AIR_HU = -300.0


def head_ct(volume: NDArray[np.float32], spacing_mm: Spacing, *, grey8: bool) -> Mask:
    """The head in a CT.

    Args:
        volume: (D, H, W) HU, or 8-bit greys of unknown window with `grey8`.

    Returns:
        (D, H, W) bool; filled slice by slice, thin structures (holder, sheets, frame) removed.
    """
    body = volume > (10.0 if grey8 else AIR_HU)
    return _solid(body, spacing_mm)


def head_mr(volume: NDArray[np.float32], spacing_mm: Spacing) -> Mask:
    """The head in an MR, SPECT or PET image (D, H, W) of any unit: above a low Otsu threshold, filled."""
    smooth = ndimage.gaussian_filter(volume, [0.0 if s > 3 else 1.0 / s for s in spacing_mm])
    top = float(np.percentile(smooth, 99.5))
    clipped = np.minimum(smooth, top)
    threshold = threshold_otsu(
        clipped[clipped > clipped.min()] if (clipped > clipped.min()).any() else clipped
    )
    body = smooth > clipped.min() + 0.35 * (threshold - clipped.min())
    return _solid(body, spacing_mm)


def _solid(body: Mask, spacing_mm: Spacing) -> Mask:
    """The one large solid part, found on a raster of about 2 mm, which is fine enough for where the patient is."""
    steps = [max(1, int(2.0 / s)) for s in spacing_mm]
    coarse = body[:: steps[0], :: steps[1], :: steps[2]]
    d, h, w = (s * n for s, n in zip(spacing_mm, steps, strict=True))
    core = largest(opened(fill_planes(coarse), 6.0, (d, h, w)))
    if not core.any():
        core = largest(coarse)
    solid = fill_planes(closed(core, 4.0, (d, h, w)))
    for axis, step in enumerate(steps):
        solid = np.repeat(solid, step, axis=axis)
    return solid[: body.shape[0], : body.shape[1], : body.shape[2]]


def without_holder(volume: NDArray[np.float32], spacing_mm: Spacing, *, grey8: bool) -> NDArray[np.float32]:
    """A CT (D, H, W) with everything outside the head (plus 3 mm) set to air: -1000 HU, or 0 in 8 bits."""
    head = dilate(head_ct(volume, spacing_mm, grey8=grey8), 3.0, spacing_mm)
    return np.where(head, volume, np.float32(0 if grey8 else -1000)).astype(np.float32)

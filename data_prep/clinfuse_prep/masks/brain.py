"""Brain from CT: the soft tissue of the intracranial space, walled in by the skull."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse_prep.masks.enclosed import enclosure
from clinfuse_prep.masks.head import head_ct
from clinfuse_prep.masks.morphology import (
    Mask,
    Spacing,
    closed,
    dilate,
    erode,
    fill_planes,
    grow_within,
    largest,
    opened,
)

SOFT_HU = (-25.0, 120.0)
WALLED = 0.8
NECK_MM = 5.0


def brain_from_ct(volume: NDArray[np.float32], bone: Mask, spacing_mm: Spacing, *, grey8: bool) -> Mask:
    """Intracranial soft tissue: brain, cerebrospinal fluid and what bleeds or grows there.

    Args:
        volume: (D, H, W) HU or 8-bit greys. bone: (D, H, W) from `bone_from_ct`.

    Returns:
        (D, H, W) bool; empty when no walled-in space is found.
    """
    head = head_ct(volume, spacing_mm, grey8=grey8)
    smooth = ndimage.gaussian_filter(volume, [0.0 if s > 3 else 1.0 / s for s in spacing_mm])
    low, high = _soft_range(volume, bone, head) if grey8 else SOFT_HU
    soft = (smooth >= low) & (smooth <= high) & ~bone & head
    wall = enclosure(bone, spacing_mm) >= WALLED
    space = soft & wall
    core = largest(erode(space, NECK_MM, spacing_mm))
    grown = grow_within(core, space, NECK_MM + 1.0, spacing_mm)
    whole = fill_planes(closed(grown, 6.0, spacing_mm)) & ~bone & head
    return opened(whole, 2.0, spacing_mm)


def _soft_range(volume: NDArray[np.float32], bone: Mask, head: Mask) -> tuple[float, float]:
    """Grey range of soft tissue in an 8-bit picture: around the mode of what is neither bone nor air."""
    inner = head & ~dilate(bone, 2.0, (1.0, 1.0, 1.0))
    values = volume[inner & (volume > 15)]
    if values.size == 0:
        return 15.0, 250.0
    counts = ndimage.gaussian_filter1d(np.bincount(values.astype(int), minlength=256).astype(float), 3)
    mode = float(counts.argmax())
    return max(8.0, 0.35 * mode), 254.0

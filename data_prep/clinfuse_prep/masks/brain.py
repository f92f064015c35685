"""Brain from CT: the soft tissue of the intracranial space, walled in by the skull."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse_prep.masks.bone import BONE_HU
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

SOFT_HU = (-25.0, 110.0)
WALL_HU = 85.0
WALLED = 0.75
NECK_MM = 5.0
RIM_MM = 2.0


def brain_from_ct(
    volume: NDArray[np.float32], bone: Mask, spacing_mm: Spacing, *, grey8: bool, head: Mask | None = None
) -> Mask:
    """Intracranial soft tissue: brain, cerebrospinal fluid and what bleeds or grows there.

    A voxel belongs to it when it is soft tissue, when at least three quarters of the directions in its slice meet
    bone, and when it hangs together with the largest such space over necks wider than 10 mm.

    Args:
        volume: (D, H, W) HU or 8-bit greys. bone: (D, H, W) from `bone_from_ct`. head: (D, H, W) if known.

    Returns:
        (D, H, W) bool; empty when no walled-in space is found. In an 8-bit CT it ends
        2 mm before the bone: dura and the blurred inner rim of the skull, whose grey is neither, belong to no mask.
        In HU the rim shows by its value.
    """
    head = head_ct(volume, spacing_mm, grey8=grey8) if head is None else head
    smooth = ndimage.gaussian_filter(volume, [0.0 if s > 3 else 1.0 / s for s in spacing_mm])
    low, high = _soft_range(volume, bone, head) if grey8 else SOFT_HU
    wall = bone if grey8 else bone | (smooth >= WALL_HU)
    space = (smooth >= low) & (smooth <= high) & ~bone & head & (enclosure(wall, spacing_mm) >= WALLED)
    core = largest(erode(space, NECK_MM, spacing_mm))
    grown = grow_within(core, space, NECK_MM + 1.0, spacing_mm)
    whole = fill_planes(closed(grown, 6.0, spacing_mm)) & ~bone & head
    wall = dilate(bone, RIM_MM, spacing_mm) if grey8 else bone | (volume >= BONE_HU)
    whole = fill_planes(whole & (smooth >= low)) & ~wall
    return opened(whole, 2.0, spacing_mm)


def _soft_range(volume: NDArray[np.float32], bone: Mask, head: Mask) -> tuple[float, float]:
    """Grey range of soft tissue in an 8-bit picture: around the mode of what is neither bone nor air."""
    inner = head & ~dilate(bone, 2.0, (1.0, 1.0, 1.0))
    values = volume[inner & (volume > 15)]
    if values.size == 0:
        return 15.0, 250.0
    counts = ndimage.gaussian_filter1d(np.bincount(values.astype(int), minlength=256).astype(float), 3)
    mode = float(counts.argmax())
    return max(6.0, 0.15 * mode), 254.0

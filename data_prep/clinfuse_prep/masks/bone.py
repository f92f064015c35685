"""Bone from CT: a threshold in HU, or the saturated plateau of an 8-bit picture of unknown window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from clinfuse_prep.masks.head import head_ct
from clinfuse_prep.masks.morphology import Mask, Spacing, closed, dilate, drop_small

BONE_HU = 250.0
PLATEAU_SHARE = 0.04
LEAST_BONE_ML = 0.5


def bone_threshold(volume: NDArray[np.float32], head: Mask, *, grey8: bool) -> float:
    """The value from which a CT voxel counts as bone.

    In HU it is a constant. In an 8-bit picture with a brain window all bone is saturated: then it is just below
    the plateau; with a wide window it is the upper of two Otsu thresholds.
    """
    if not grey8:
        return BONE_HU
    values = volume[head]
    top = float(values.max())
    if (values >= top - 3).mean() >= PLATEAU_SHARE:
        return top - 5
    return float(threshold_multiotsu(values, classes=3)[-1])


def bone_from_ct(
    volume: NDArray[np.float32], spacing_mm: Spacing, *, grey8: bool, head: Mask | None = None
) -> tuple[Mask, str]:
    """Bone mask of the head.

    Args:
        volume: (D, H, W) HU or 8-bit greys. head: (D, H, W) if known.

    Returns:
        (D, H, W) bool without holder, frame and isolated calcifications below 0.5 mL, with the diploë closed;
        and the method's name for the provenance.
    """
    head = head_ct(volume, spacing_mm, grey8=grey8) if head is None else head
    threshold = bone_threshold(volume, head, grey8=grey8)
    bright = (volume >= threshold) & dilate(head, 1.5, spacing_mm)
    bone = drop_small(closed(bright, 1.5, spacing_mm), LEAST_BONE_ML, spacing_mm)
    return bone, f"ct-{'plateau' if grey8 else 'hu'}>={threshold:g}"

"""Bone from CT: a HU threshold with its rim at half height, or the white plateau of an 8-bit picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from clinfuse_prep.masks.head import head_ct
from clinfuse_prep.masks.morphology import Mask, Spacing, closed, dilate, drop_small, erode

BONE_HU = 250.0
SOFT_TISSUE_HU, RIM_MM = 40.0, 2.0
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
    if not grey8:
        bright = at_half_height(volume, bright, spacing_mm)
    bone = drop_small(closed(bright, 1.5, spacing_mm), LEAST_BONE_ML, spacing_mm)
    return bone, f"ct-{'plateau' if grey8 else 'hu'}>={threshold:g}"


def at_half_height(volume: NDArray[np.float32], bright: Mask, spacing_mm: Spacing) -> Mask:
    """Bone's outline put where the CT has fallen to half between bone beside it and soft tissue (40 HU).

    A fixed threshold counts the blurred rim of dense bone as bone and makes every skull too thick; raising it loses
    thin walls. So a voxel at the rim stays only if it reaches half of its neighbourhood's peak; diploë, which lies
    inside, always stays.

    Args:
        volume: (D, H, W) HU. bright: (D, H, W), what reaches the threshold.
    """
    size = [2 * round(RIM_MM / s) + 1 for s in spacing_mm]
    peak = ndimage.maximum_filter(volume, size=size)
    inside = erode(bright, max(RIM_MM, *spacing_mm[1:]) * 1.05, spacing_mm)
    return bright & (inside | (volume >= SOFT_TISSUE_HU + 0.5 * (peak - SOFT_TISSUE_HU)))

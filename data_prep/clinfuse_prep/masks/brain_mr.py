"""Brain from MR without a learned model: tissue inside the dark ring of the skull, cut off at its necks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from clinfuse_prep.masks.head import head_mr
from clinfuse_prep.masks.morphology import (
    Mask,
    Spacing,
    closed,
    erode,
    fill_planes,
    grow_within,
    largest,
    opened,
)

NECKS_MM = (3.0, 4.5, 6.0, 8.0, 10.0, 13.0)
SCALP_MM = 7.0
LARGEST_SHARE = 0.62
LARGEST_ML = 2000.0


def brain_classical(volume: NDArray[np.float32], spacing_mm: Spacing) -> Mask:
    """Tissue inside the skull's dark ring.

    Tissue is what is brighter than the lower of two Otsu thresholds, found on square roots so that bright fluid and
    lesions do not pull it upward; it is eroded with growing radii until its
    largest part no longer holds eyes, scalp and neck, that is, until it fills less than 62 % of the head and
    2 litres; then it grows back.

    Args:
        volume: (D, H, W) MR of any unit and weighting.

    Returns:
        (D, H, W) bool, empty when nothing is found.
    """
    head = head_mr(volume, spacing_mm)
    smooth = ndimage.gaussian_filter(volume, [0.0 if s > 3 else 1.0 / s for s in spacing_mm])
    values = smooth[head]
    if values.size < 100 or float(np.ptp(values)) == 0:
        return np.zeros(volume.shape, dtype=bool)
    floor = float(values.min())
    roots = np.sqrt(np.minimum(values, np.percentile(values, 95)) - floor)
    dark = floor + float(threshold_multiotsu(roots, classes=3)[0]) ** 2
    inner = erode(head, SCALP_MM, spacing_mm)
    tissue = (smooth > dark) & inner
    grown, voxel = tissue, float(np.prod(spacing_mm))
    for neck in NECKS_MM:
        core = largest(erode(tissue, neck, spacing_mm))
        if not core.any():
            break
        grown = grow_within(core, tissue, neck + 1.0, spacing_mm)
        size = float(grown.sum())
        if size < min(LARGEST_SHARE * head.sum(), LARGEST_ML * 1000 / voxel) and not _spills(grown, head):
            break
    whole = fill_planes(closed(grown, 7.0, spacing_mm)) & inner
    return opened(whole, 3.0, spacing_mm)


def _spills(mask: Mask, head: Mask) -> bool:
    """Whether the mask fills most of the head's lowest slices, where a brain is narrow."""
    planes = np.flatnonzero(head.any(axis=(1, 2)))
    if planes.size < 8:
        return False
    lowest = planes[: max(1, planes.size // 8)]
    return bool(mask[lowest].sum() > 0.45 * head[lowest].sum())

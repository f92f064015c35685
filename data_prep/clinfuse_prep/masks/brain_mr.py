"""Brain from MR without CT: a learned extractor for whole heads, a classical one for thick-slice stacks."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from clinfuse_prep.masks.head import head_mr
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

NECK_MM = 4.0
SCALP_MM = 8.0


def brain_classical(volume: NDArray[np.float32], spacing_mm: Spacing) -> Mask:
    """Tissue inside the dark ring of the skull, cut off at necks thinner than 8 mm.

    Args:
        volume: (D, H, W) MR of any unit and weighting.

    Returns:
        (D, H, W) bool.
    """
    head = head_mr(volume, spacing_mm)
    smooth = ndimage.gaussian_filter(volume, [0.0 if s > 3 else 1.0 / s for s in spacing_mm])
    values = smooth[head]
    if values.size < 100 or float(np.ptp(values)) == 0:
        return np.zeros(volume.shape, dtype=bool)
    dark = float(threshold_multiotsu(np.minimum(values, np.percentile(values, 98)), classes=3)[0])
    tissue = (smooth > dark) & erode(head, SCALP_MM, spacing_mm)
    core = largest(erode(tissue, NECK_MM, spacing_mm))
    grown = grow_within(core, tissue, NECK_MM + 1.5, spacing_mm)
    whole = fill_planes(closed(grown, 6.0, spacing_mm)) & erode(head, SCALP_MM / 2, spacing_mm)
    return opened(dilate(whole, 1.0, spacing_mm), 3.0, spacing_mm)


def deepbet_installed() -> bool:
    """Whether the optional package deepbet (weights inside its wheel) is importable."""
    return importlib.util.find_spec("deepbet") is not None

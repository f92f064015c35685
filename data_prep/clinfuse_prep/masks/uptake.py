"""Uptake in SPECT and PET: the companion's own region, which takes the place that bone has in CT.

F shows the companion there as it shows the CT in bone; everywhere else in the brain it shows the MRI, and a companion's
pseudo-colour lies over both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from clinfuse_prep.masks.morphology import Mask, Spacing, drop_small

LEAST_UPTAKE_ML = 0.5
HOTTEST, BINS = 99.9, 256
"""Percentile above which values count alike, so that a few hot voxels do not put all others into one bin."""


def uptake_from(volume: NDArray[np.float32], brain: Mask, spacing_mm: Spacing) -> tuple[Mask, str]:
    """Where a tracer has gathered most: the uppermost of the brain's three classes of grey, inside the brain or not.

    Args:
        volume: (D, H, W) SPECT or PET, any unit. brain: (D, H, W).

    Returns:
        (D, H, W) bool without pieces below 0.5 mL, empty if the brain's values do not differ; and the method's name
        for the provenance.

    Reference: Liao, Chen, Chung, A fast algorithm for multilevel thresholding, J Inf Sci Eng 17, 2001 (Otsu's method
    for three classes).
    """
    values = volume[brain]
    if values.size:
        values = np.minimum(values, np.percentile(values, HOTTEST))
    if np.count_nonzero(np.histogram(values, bins=BINS)[0]) < 3:
        return np.zeros(volume.shape, dtype=bool), "nm-none"
    threshold = float(threshold_multiotsu(values, classes=3, nbins=BINS)[-1])
    return drop_small(volume > threshold, LEAST_UPTAKE_ML, spacing_mm), f"nm-otsu>{threshold:g}"

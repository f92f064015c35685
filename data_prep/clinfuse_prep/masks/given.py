"""Masks from files: what lies inside by labels or probabilities; an image given as a mask is refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError
from clinfuse_prep.raw import RawImage

MOST_LABELS = 8
GREY = (0.1, 0.9)
MOST_GREY = 0.1
"""Share of a probability map's voxels that may lie between `GREY`; of a head's image about half do."""


def inside(image: RawImage, roi: str, case: str) -> NDArray[np.bool_]:
    """Voxels (D, H, W) of a mask: labels above 0, or the upper half of a probability or of an 8-bit picture.

    Raises:
        InputError: non-finite voxels, or values that are those of an image.
    """
    values = image.volume
    if not np.isfinite(values).all():
        raise InputError(
            f"the {roi} mask has non-finite voxels",
            expected="0 and 1",
            case=case,
            todo="export the mask again",
        )
    whole = bool((values == np.round(values)).all())
    if whole and len(np.unique(values)) <= MOST_LABELS:
        return np.asarray(values > 0)
    shares = values / 255 if image.grey8 else values
    grey = (shares > GREY[0]) & (shares < GREY[1])
    if shares.min() < 0 or shares.max() > 1 or grey.mean() > MOST_GREY:
        raise InputError(
            f"the {roi} mask is no mask",
            expected=f"0 and 1, at most {MOST_LABELS} labels, or probabilities of which most are near 0 or 1",
            found=f"values {values.min():g} … {values.max():g}, as an image has",
            case=case,
            todo="check which file it is; save a mask as 0 and 1",
        )
    return np.asarray(shares > 0.5 * float(shares.max()))

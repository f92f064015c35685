"""Masks from files: what lies inside by labels or probabilities, and where that is on a case's grid.

An image given as a mask is refused, and so is a mask of which nothing is left on the grid: it is never "no mask".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import MaskArray
from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.geometry import Grid, overlap, resample_mask
from clinfuse_prep.raw import RawImage

MOST_LABELS = 8
GREY = (0.1, 0.9)
LEAST_OVERLAP, LEAST_KEPT = 0.3, 0.5
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


def placed(
    within: NDArray[np.generic], grid: Grid, target: Grid, roi: str, case: str
) -> tuple[MaskArray, float]:
    """A mask on a case's grid.

    Args:
        within: (D, H, W) on `grid`, above 0 inside. A lesion's may be cropped, the others show the head.

    Returns:
        The mask (D, H, W) on `target`, and the share of its volume that is there, 1 for one that is empty.

    Raises:
        GeometryError: the mask shows another place, or nothing of it is left.
    """
    if roi != "lesion" and overlap(grid, target) < LEAST_OVERLAP:
        raise _elsewhere(roi, f"{overlap(grid, target):.0%} of the grid covered", case)
    mask = resample_mask(within, grid, target)
    before = np.count_nonzero(within)
    if not before:
        return mask, 1.0
    if not mask.any():
        raise _elsewhere(roi, f"none of its {before} voxels on the case's grid", case)
    size = float(np.prod(target.spacing) / np.prod(grid.spacing))
    return mask, np.count_nonzero(mask) * size / before


def _elsewhere(roi: str, found: str, case: str) -> GeometryError:
    return GeometryError(
        f"the {roi} mask shows another place than the images",
        expected="a mask drawn on one of the images",
        found=found,
        case=case,
        todo="export the mask again on the anatomy image's grid; one smaller than a voxel needs a finer --spacing",
    )

"""Defacing: eyes, nose and mouth are removed, the brain never.

Images and masks lose it alike, as the bone mask shows the facial skeleton.

Everything in the anterior 38 % of the brain's length and in front of it, below a plane that rises from the brain's
lowest point to the brow, is face, except the brain with a margin around it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import MaskArray
from clinfuse.errors import InputError
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.morphology import Mask, dilate

MARGIN_MM = 8.0


def face_of(masks: Mapping[str, MaskArray], grid: Grid, *, ct: bool) -> Mask:
    """Voxels (D, H, W) of a case's face; in SPECT and PET, where the region named bone is uptake, it is spared, too.

    Args:
        masks: brain and bone.
        ct: whether the companion is a CT.

    Raises:
        InputError: see `face_mask`.
    """
    return face_mask(masks["brain"] if ct else masks["brain"] | masks["bone"], grid)


def face_mask(brain: NDArray[np.uint8], grid: Grid) -> Mask:
    """Voxels that show the face.

    Args:
        brain: (D, H, W); H runs posterior → anterior, D inferior → superior.

    Returns:
        (D, H, W) bool, disjoint from the brain with a margin of 8 mm.

    Raises:
        InputError: an empty brain mask, from which no face can be found.
    """
    if not brain.any():
        raise InputError(
            "the face cannot be removed",
            expected="a brain mask, which says where the face is",
            found="an empty one",
            todo="give a brain mask, or keep the face (no --deface; --no-deface in exports)",
        )
    face = np.zeros(brain.shape, dtype=bool)
    kept = dilate(brain > 0, MARGIN_MM, grid.spacing)
    d, h, _ = np.nonzero(brain)
    back, front = np.percentile(h, (2, 98))
    middle = back + 0.62 * (front - back)
    bottom, top = np.percentile(d, (2, 98))
    brow = bottom + 0.38 * (top - bottom)
    rows = np.arange(brain.shape[1])
    share = np.clip((rows - middle) / max(1.0, front - middle), 0, 1)
    limit = np.where(rows >= middle, bottom + (brow - bottom) * share, -1.0)
    face |= (np.arange(brain.shape[0])[:, None] <= limit[None, :])[:, :, None]
    return face & ~kept

"""The automatic brain mask: which method for which images, and whether CT and MR agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.brain import brain_from_ct
from clinfuse_prep.masks.brain_mr import brain_classical
from clinfuse_prep.masks.morphology import Mask


@dataclass(frozen=True)
class BrainMask:
    """A brain mask (D, H, W) bool, the method that made it, and what was noticed."""

    mask: Mask
    method: str
    findings: list[Finding] = field(default_factory=list)


def brain_mask(
    anatomy: NDArray[np.float32],
    ct: NDArray[np.float32] | None,
    bone: NDArray[np.uint8] | None,
    grid: Grid,
    *,
    grey8: bool,
    method: str,
    case: str,
) -> BrainMask:
    """Make a brain mask.

    Args:
        anatomy: (D, H, W) MR, any unit. ct: (D, H, W) HU or 8-bit greys on the same grid, or None.
        bone: (D, H, W) bone mask if there is one.
        method: a name of `config.BRAIN_METHODS`.
    """
    if ct is not None and method in ("auto", "ct"):
        skull = bone > 0 if bone is not None else bone_from_ct(ct, grid.spacing, grey8=grey8)[0]
        return BrainMask(brain_from_ct(ct, skull, grid.spacing, grey8=grey8), "ct-intracranial")
    return BrainMask(brain_classical(anatomy, grid.spacing), "mr-classical")

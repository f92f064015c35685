"""What a sweep optimises: six numbers per case, cheap enough to compute in every trial."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from clinfuse.case import Case, FloatArray
from clinfuse.evaluation.lesions import segment_lesion
from clinfuse.metrics.checks import as_image, same_shape
from clinfuse.metrics.lesion import lesion_scores
from clinfuse.metrics.roi import roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.presets import Preset


def reference_companion(case: Case) -> FloatArray:
    """The companion that F is measured against: without its misregistration where that is known."""
    return case.companion if case.aligned_companion is None else case.aligned_companion


def sources(case: Case, given: FloatArray | None = None) -> list[FloatArray]:
    """All images that F may have taken a gradient or a value from.

    Args:
        given: the companion that the method saw, where it was not the stored one.
    """
    companion = case.companion if given is None else given
    aligned = case.aligned_companion
    images = [case.anatomy, companion]
    return images if aligned is None or aligned is companion else [*images, aligned]


def check_fused(case: Case, fused: FloatArray) -> FloatArray:
    """F as float32 on the case's grid, in [0, 1].

    Raises:
        GeometryError: another shape than the case. InputError: non-finite voxels or values outside [0, 1].
    """
    same_shape(case=case.case_id, anatomy=case.anatomy, fused=np.asarray(fused))
    return as_image("the fused image", fused, case=case.case_id)


def objectives(
    case: Case, fused: FloatArray, lesion_head: nn.Module | None, preset: Preset
) -> dict[str, float]:
    """The objectives of one case.

    Args:
        case: the case; its aligned companion, where known, is the bone reference.
        fused: (D, H, W) in [0, 1].
        lesion_head: see `segment_lesion`, or None.
        preset: gives the tolerance τ in mm.

    Returns:
        brain_ssim, bone_ssim in [-1, 1] (NaN if the region is empty), lesion_dice and lesion_nsd in [0, 1] and
        lesion_hd95_mm in mm (NaN without lesion or lesion head), seam in 8-bit greys (NaN without borders).

    Raises:
        GeometryError, InputError: the fused image does not fit the case.
    """
    f = check_fused(case, fused)
    values = {
        "brain_ssim": roi_ssim(f, case.anatomy, case.brain),
        "bone_ssim": roi_ssim(f, reference_companion(case), case.bone),
        "lesion_dice": math.nan,
        "lesion_nsd": math.nan,
        "lesion_hd95_mm": math.nan,
        "seam": seam_index(f, sources(case), (case.brain, case.bone)),
    }
    if lesion_head is not None and case.has_lesion:
        found = segment_lesion(lesion_head, f, case.spacing)
        scores = lesion_scores(case.lesion, found, case.spacing, preset.tau_mm)
        values |= {
            "lesion_dice": scores.dice,
            "lesion_nsd": scores.nsd,
            "lesion_hd95_mm": scores.hd95_mm,
        }
    return values

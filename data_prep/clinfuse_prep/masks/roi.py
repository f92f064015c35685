"""All ROI masks of a case with their provenance: from files first, else automatic, else absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from clinfuse.case import ROIS, FloatArray, MaskArray
from clinfuse_prep.checks import check_bone, check_brain
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.auto import BrainInputs, brain_mask
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.given import LEAST_KEPT, inside, placed
from clinfuse_prep.masks.head import head_ct
from clinfuse_prep.masks.uptake import uptake_from
from clinfuse_prep.raw import RawImage


@dataclass(kw_only=True)
class RoiMasks:
    """Masks (D, H, W) uint8 by ROI, where each came from, and what was noticed."""

    arrays: dict[str, MaskArray] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    agreement: float | None = None


def roi_masks(
    images: Mapping[str, RawImage],
    raw: Mapping[str, FloatArray],
    grid: Grid,
    config: PrepConfig,
    *,
    ct: bool,
    case: str,
) -> RoiMasks:
    """Brain, bone and lesion of a case; in SPECT and PET the region named bone is the uptake.

    Args:
        images: as read; those named brain, bone, lesion are curated masks on any grid.
        raw: raw volumes (D, H, W) by role on `grid`.
        ct: whether the companion is a CT.

    Raises:
        InputError: a mask file that holds no mask, or an empty brain mask.
        GeometryError: a mask file that shows another place, or of which nothing is left on `grid`.
    """
    made = RoiMasks()
    for roi in ROIS:
        if roi in images:
            _curated(made, images[roi], roi, grid, case)
    _automatic(made, images, raw, grid, config, ct=ct, case=case)
    if ct:
        _apart(made, case)
    for roi in ROIS:
        if roi not in made.arrays:
            made.arrays[roi], made.provenance[roi] = np.zeros(grid.shape, np.uint8), "absent"
    planes = grid.shape[0]
    assumed = images["anatomy"].kind == "png" and config.slice_spacing_mm == PrepConfig().slice_spacing_mm
    made.findings += check_brain(made.arrays["brain"] > 0, grid.spacing, case, planes, assumed=assumed)
    if not ct:
        _uptake(made, raw["companion"], grid)
    made.findings += check_bone(made.arrays["bone"] > 0, grid.spacing, case, ct=ct, planes=planes)
    return made


def _automatic(
    made: RoiMasks,
    images: Mapping[str, RawImage],
    raw: Mapping[str, FloatArray],
    grid: Grid,
    config: PrepConfig,
    *,
    ct: bool,
    case: str,
) -> None:
    """Add the masks that no file gives. A companion known to be aligned is the better base: masks made from it lie
    where they should and do not move when the companion is aligned, so their provenance says "auto:aligned-ct-…"."""
    lies = "aligned-" if "aligned_companion" in raw else ""
    volume = raw.get("aligned_companion", raw["companion"]) if ct else None
    grey8 = images["companion"].grey8
    needs_brain = "brain" not in made.arrays and config.brain != "none"
    head = None
    if volume is not None and (needs_brain or "bone" not in made.arrays):
        head = head_ct(volume, grid.spacing, grey8=grey8)
    if volume is not None and "bone" not in made.arrays:
        bone, how = bone_from_ct(volume, grid.spacing, grey8=grey8, head=head)
        made.arrays["bone"], made.provenance["bone"] = bone.astype(np.uint8), f"auto:{lies}{how}"
    if needs_brain:
        inputs = BrainInputs(
            anatomy=raw["anatomy"],
            grid=grid,
            case=case,
            ct=volume,
            grey8=grey8,
            bone=made.arrays.get("bone"),
            head=head,
        )
        brain = brain_mask(inputs, config.brain, compare=config.compare)
        made.arrays["brain"] = brain.mask.astype(np.uint8)
        made.provenance["brain"] = f"auto:{lies if brain.method.startswith('ct') else ''}{brain.method}"
        made.findings += brain.findings
        made.agreement = brain.agreement


def _uptake(made: RoiMasks, companion: FloatArray, grid: Grid) -> None:
    """The companion's own region in place of bone, unless a file gives it; the brain is what lies outside it."""
    brain = made.arrays["brain"] > 0
    if made.provenance["bone"] == "absent":
        found, how = uptake_from(companion, brain, grid.spacing)
        made.arrays["bone"], made.provenance["bone"] = found.astype(np.uint8), f"auto:{how}"
    made.arrays["brain"] = (brain & (made.arrays["bone"] == 0)).astype(np.uint8)


def _apart(made: RoiMasks, case: str) -> None:
    """No voxel is brain and bone: an automatic mask gives way, the brain if both are; two from files are reported."""
    if "brain" not in made.arrays or "bone" not in made.arrays:
        return
    both = (made.arrays["brain"] > 0) & (made.arrays["bone"] > 0)
    if not both.any():
        return
    if all(made.provenance[roi] == "curated" for roi in ("brain", "bone")):
        share = both.sum() / (made.arrays["bone"] > 0).sum()
        made.findings.append(
            Finding(
                case=case,
                severity="warning",
                problem="brain and bone mask overlap",
                expected="no voxel in both",
                found=f"{share:.0%} of the bone lies in the brain",
                todo="correct the files; both are kept as they are",
            )
        )
        return
    yields = "bone" if made.provenance["brain"] == "curated" else "brain"
    made.arrays[yields] = np.where(both, np.uint8(0), made.arrays[yields])


def _curated(made: RoiMasks, image: RawImage, roi: str, grid: Grid, case: str) -> None:
    """Add a mask from a file, see `clinfuse_prep.masks.given`; one that is cut off is told of."""
    made.arrays[roi], kept = placed(inside(image, roi, case), image.grid, grid, roi, case)
    made.provenance[roi] = "curated"
    if kept < LEAST_KEPT:
        made.findings.append(
            Finding(
                case=case,
                severity="warning",
                problem=f"most of the {roi} mask is not on the case's grid",
                expected=f"at least {LEAST_KEPT:.0%} of its volume",
                found=f"{kept:.0%}",
                todo="check that the mask belongs to the images, and that they show all of it",
            )
        )

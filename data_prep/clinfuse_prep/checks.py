"""Checks of a whole case: what cannot be used raises, what should be looked at becomes a finding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid, overlap
from clinfuse_prep.masks.morphology import Mask, Spacing
from clinfuse_prep.raw import RawImage

BRAIN_ML = (300.0, 2200.0)
BONE_ML = (100.0, 2000.0)
PLATEAU_SHARE = 0.12
LEAST_OVERLAP = 0.4


def looks_like_ct(image: RawImage) -> bool:
    """Whether the values are those of a CT: air near -1000 HU, or in 8 bits a thick saturated skull.

    In an 8-bit CT with a brain window a share of 0.17 to 0.97 of a slice's pixels sits on the white plateau;
    in MR at most 0.063 (every slice of 7 and of 16 real patients).
    """
    volume = image.volume
    if not image.grey8:
        return float(np.percentile(volume, 2)) < -300
    values = volume[volume > 10]
    return bool(values.size and (values >= max(float(values.max()), 200.0) - 3).mean() > PLATEAU_SHARE)


def guessed_kind(companion: RawImage, case: str) -> tuple[str, list[Finding]]:
    """What a companion of unstated kind is taken as: "CT", or "NM" (SPECT, PET) with a warning unless in colour."""
    if looks_like_ct(companion) or (companion.grey8 and companion.chroma is None):
        return "CT", []
    if companion.chroma is not None:
        return "NM", []
    warning = Finding(
        case=case,
        severity="warning",
        problem="the companion image is taken as SPECT or PET",
        expected="air near -1000 HU, were it a CT",
        found=f"values {companion.volume.min():g} … {companion.volume.max():g}",
        todo="a CT: export it in Hounsfield units; SPECT or PET: say so by --companion-kind (HTTP: companion_kind)",
    )
    return "NM", [warning]


def check_modalities(anatomy: RawImage, companion: RawImage, kind: str, case: str) -> list[Finding]:
    """Whether both images are what they are given as.

    Args:
        kind: the companion's modality, e.g. "CT".

    Raises:
        InputError: the anatomy image is a CT: MRI and CT are swapped, or both are CT.
    """
    companion_ct = looks_like_ct(companion)
    if looks_like_ct(anatomy):
        raise InputError(
            "both images look like CT" if companion_ct else "MRI and CT are swapped",
            expected="an MR as anatomy image and a CT, SPECT or PET as companion",
            found="CT values in the anatomy image",
            case=case,
            todo="give the MR as anatomy image" if companion_ct else "exchange the two files",
        )
    if kind == "CT" and not companion_ct:
        return [
            Finding(
                case=case,
                severity="warning",
                problem="the companion image does not look like a CT",
                expected="air near -1000 HU, or an 8-bit picture with a white skull",
                found=f"values {companion.volume.min():g} … {companion.volume.max():g}",
                todo="check which file it is, and its unit",
            )
        ]
    return []


def check_subjects(anatomy: RawImage, companion: RawImage, case: str) -> list[Finding]:
    """Whether the files name one patient, where both name one; not refused, as ids given on export may differ."""
    named = {anatomy.subject, companion.subject}
    if "" in named or len(named) == 1:
        return []
    return [
        Finding(
            case=case,
            severity="warning",
            problem="the files of the two images name different patients",
            expected="both images of one patient",
            found="two patient ids",
            todo="make sure that they are one patient's before anything is read from the fused image",
        )
    ]


def check_overlap(companion: Grid, grid: Grid, case: str) -> None:
    """Refuse a pair whose headers say that they show different places.

    Raises:
        GeometryError: less than 40 % of the case's grid lies in the companion's field of view.
    """
    share = overlap(companion, grid)
    if share < LEAST_OVERLAP:
        raise GeometryError(
            "anatomy and companion image show different places",
            expected=f"at least {LEAST_OVERLAP:.0%} of the anatomy image inside the companion's field of view",
            found=f"{share:.0%}",
            case=case,
            todo="check that both belong together; repair the headers, or use --register",
        )


def check_pictures(images: Mapping[str, RawImage], case: str) -> None:
    """Pictures carry no position, so all pictures of a case must have equal shapes.

    Raises:
        GeometryError: they have not.
    """
    anatomy = images["anatomy"]
    for role, image in images.items():
        if (image.kind == "png" or anatomy.kind == "png") and image.grid.shape != anatomy.grid.shape:
            raise GeometryError(
                f"anatomy and {role} have unequal shapes",
                expected=f"{anatomy.grid.shape} (slices, rows, columns)",
                found=f"{image.grid.shape}",
                case=case,
                todo="export both with the same matrix and slices",
            )


def volume_ml(mask: NDArray[np.generic], spacing_mm: Spacing) -> float:
    """Volume of a mask (D, H, W) in mL."""
    return float(np.count_nonzero(mask)) * float(np.prod(spacing_mm)) / 1000


def check_brain(
    brain: Mask, spacing_mm: Spacing, case: str, planes: int, *, assumed: bool = False
) -> list[Finding]:
    """The brain mask's volume.

    Args:
        assumed: the spacing is an assumption (pictures), which an odd volume speaks against.

    Raises:
        InputError: the mask is empty.
    """
    if not brain.any():
        raise InputError(
            "the brain mask is empty",
            expected="some brain in the images",
            found="0 mL",
            case=case,
            todo="check that both images show a head, or give a mask from a file",
        )
    ml = volume_ml(brain, spacing_mm)
    if planes >= 10 and not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
        return [_odd("brain", ml, BRAIN_ML, case, assumed=assumed)]
    return []


def check_bone(bone: Mask, spacing_mm: Spacing, case: str, *, ct: bool, planes: int) -> list[Finding]:
    """The bone mask's volume; of SPECT and PET, whether there is any uptake."""
    if not ct:
        return [] if bone.any() else [_no_uptake(case)]
    if not bone.any():
        return [
            Finding(
                case=case,
                severity="warning",
                problem="the bone mask is empty",
                expected="some bone in the CT",
                found="0 mL",
                todo="check the CT's values, or give a mask from a file",
            )
        ]
    ml = volume_ml(bone, spacing_mm)
    return [_odd("bone", ml, BONE_ML, case)] if planes >= 10 and not BONE_ML[0] <= ml <= BONE_ML[1] else []


def _no_uptake(case: str) -> Finding:
    return Finding(
        case=case,
        severity="info",
        problem="no region of uptake",
        expected="a tracer that has gathered somewhere, or a mask from a file",
        found="0 mL",
        todo="F shows the anatomy image; terms of the companion's region are absent for this case",
    )


def _odd(roi: str, ml: float, usual: tuple[float, float], case: str, *, assumed: bool = False) -> Finding:
    look = "look at its outline on the contact sheet; correct it with clinfuse masks"
    return Finding(
        case=case,
        severity="warning",
        problem=f"the {roi} mask has an unusual volume",
        expected=f"{usual[0]:g} to {usual[1]:g} mL in a whole head",
        found=f"{ml:.0f} mL",
        todo=f"the assumed spacing may be wrong: give --slice-spacing; {look}" if assumed else look,
    )

"""The steps of one case, in order: check, align, mask, scale, put together; each is recorded in its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clinfuse.case import ROIS, Case, FloatArray
from clinfuse_prep.checks import check_modalities, check_overlap, check_pictures, check_subjects
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid, resample, with_spacing
from clinfuse_prep.intensity import Scaling, grey_scaling, hu_scaling, percentile_scaling, to_unit
from clinfuse_prep.masks.head import head_mr, without_holder
from clinfuse_prep.masks.roi import RoiMasks, roi_masks
from clinfuse_prep.raw import RawImage, check_voxels
from clinfuse_prep.shear import MOST_SHEAR_MM, shear_mm, upright

COMPANIONS = ("companion", "aligned_companion")
COLOUR_NOTE = "YCbCr BT.601; chrominance stored as `chroma`"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared case, and what was noticed on the way."""

    case: Case
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the steps work on: images by role, their modalities, the choices, the case's pseudonym, and whether
    the companion is simulated (then it shows no head holder)."""

    images: Mapping[str, RawImage]
    modalities: tuple[str, str]
    config: PrepConfig
    case: str
    simulated: bool = False

    @property
    def ct(self) -> bool:
        """Whether the companion is a CT."""
        return self.modalities[1] == "CT"

    @property
    def grid(self) -> Grid:
        """The case's grid, at right angles: the anatomy image's, or its field of view with the spacing asked for."""
        grid = upright(self.images["anatomy"].grid)
        spacing = self.config.spacing_mm
        return grid if spacing is None else with_spacing(grid, spacing)


def run_steps(task: Task, attrs: dict[str, Any], notes: list[Finding]) -> Prepared:
    """Do all steps.

    Args:
        attrs: what is known already: patient, split, simulated.
        notes: findings made before.

    Raises:
        InputError, GeometryError: see `clinfuse_prep.checks`.
    """
    findings = [*notes, *_check(task)]
    raw, registration, doubts = _align(task)
    masks = roi_masks(
        _following(task.images, registration), raw, task.grid, task.config, ct=task.ct, case=task.case
    )
    findings += [*doubts, *masks.findings]
    scaling = {role: _scaling(task, role, raw[role]) for role in ("anatomy", "companion")}
    volumes = {role: to_unit(volume, scaling[_scale_of(role)]) for role, volume in raw.items()}
    chroma = _chroma(task, registration)
    if task.config.deface:
        volumes, chroma = _defaced(volumes, chroma, masks, task)
    attrs = {
        **attrs,
        **_record(task, scaling, masks, registration),
        "findings": [finding.as_dict() for finding in findings],
    }
    case = Case(
        case_id=task.case,
        anatomy=volumes["anatomy"],
        companion=volumes["companion"],
        brain=masks.arrays["brain"],
        bone=masks.arrays["bone"],
        lesion=masks.arrays["lesion"],
        affine=task.grid.affine,
        modalities=task.modalities,
        aligned_companion=volumes.get("aligned_companion"),
        chroma=chroma,
        attrs=attrs,
    )
    return Prepared(case=case, findings=findings)


def _check(task: Task) -> list[Finding]:
    anatomy, companion = task.images["anatomy"], task.images["companion"]
    for role in ("anatomy", *COMPANIONS):
        if role in task.images:
            check_voxels(task.images[role].volume, role.replace("_", " "), task.case)
    check_pictures(task.images, task.case)
    findings = check_modalities(anatomy, companion, task.modalities[1], task.case)
    if task.config.register == "none":
        check_overlap(companion.grid, task.grid, task.case)
    return [*_reading_notes(task), *findings, *check_subjects(anatomy, companion, task.case)]


def _reading_notes(task: Task) -> list[Finding]:
    notes: dict[str, Finding] = {}
    for role in ("anatomy", "companion"):
        for severity, problem, expected, found, todo in task.images[role].notes:
            notes[problem] = Finding(
                case=task.case, severity=severity, problem=problem, expected=expected, found=found, todo=todo
            )
    return [*notes.values(), *_upright_note(task)]


def _upright_note(task: Task) -> list[Finding]:
    lean = shear_mm(task.images["anatomy"].grid)
    found = Finding(
        case=task.case,
        severity="info",
        problem="the anatomy image's voxel axes are not at right angles; the case's are",
        expected=f"at most {MOST_SHEAR_MM} mm of shear across the image",
        found=f"{lean:.1f} mm",
    )
    return [found] if lean > MOST_SHEAR_MM else []


def _align(task: Task) -> tuple[dict[str, FloatArray], dict[str, Any], list[Finding]]:
    """Raw volumes (D, H, W) by role on the case's grid, the registration's record, and doubts about it."""
    anatomy, grid = task.images["anatomy"], task.grid
    raw = {"anatomy": resample(anatomy.volume, anatomy.grid, grid, fill=float(anatomy.volume.min()))}
    if task.config.n4:
        from clinfuse_prep.bias import n4

        raw["anatomy"] = n4(raw["anatomy"], grid)
    record: dict[str, Any] = {"method": "header", "transform": np.eye(4).tolist()}
    doubts: list[Finding] = []
    for role in COMPANIONS:
        if role not in task.images:
            continue
        image = task.images[role]
        volume = _without_holder(image) if task.ct and not task.simulated else image.volume
        if role == "companion" and task.config.register != "none":
            from clinfuse_prep.registration import register

            record, doubts = register(
                raw["anatomy"], grid, volume, image.grid, task.config.register, task.case
            )
        source = image.grid if role != "companion" else _moved(image.grid, record)
        raw[role] = resample(volume, source, grid, fill=float(volume.min()))
    return raw, record, doubts


def _without_holder(image: RawImage) -> FloatArray:
    return without_holder(image.volume, image.grid.spacing, grey8=image.grey8)


def _moved(grid: Grid, record: Mapping[str, Any]) -> Grid:
    """The companion's grid after registration, whose matrix maps anatomy mm to companion mm."""
    return Grid(grid.shape, np.linalg.inv(np.array(record["transform"])) @ grid.affine)


def _following(images: Mapping[str, RawImage], record: Mapping[str, Any]) -> dict[str, RawImage]:
    """The images, of which masks that were drawn on the companion's grid alone lie where registration laid that."""
    anatomy, companion = images["anatomy"].grid, images["companion"].grid
    if anatomy.same_as(companion):
        return dict(images)
    return {
        role: replace(image, grid=_moved(image.grid, record))
        if role in ROIS and image.grid.same_as(companion)
        else image
        for role, image in images.items()
    }


def _scale_of(role: str) -> str:
    return "anatomy" if role == "anatomy" else "companion"


def _scaling(task: Task, role: str, raw: FloatArray) -> Scaling:
    if task.images[role].grey8:
        return grey_scaling()
    if role == "companion" and task.ct:
        return hu_scaling(task.config.ct_window)
    head = head_mr(raw, task.grid.spacing)
    return percentile_scaling(raw, head, task.config.mr_percentiles, task.case)


def _chroma(task: Task, registration: Mapping[str, Any]) -> FloatArray | None:
    companion = task.images["companion"]
    if companion.chroma is None:
        return None
    source = _moved(companion.grid, registration)
    return np.stack([resample(part, source, task.grid) for part in companion.chroma])


def _defaced(
    volumes: dict[str, FloatArray], chroma: FloatArray | None, masks: RoiMasks, task: Task
) -> tuple[dict[str, FloatArray], FloatArray | None]:
    """Images and colour without the face; the masks lose it in place."""
    from clinfuse_prep.deface import face_of

    keep = ~face_of(masks.arrays, task.grid, ct=task.ct)
    masks.arrays = {roi: mask * keep for roi, mask in masks.arrays.items()}
    return {
        role: volume * keep for role, volume in volumes.items()
    }, None if chroma is None else chroma * keep


def _record(
    task: Task, scaling: dict[str, Scaling], masks: RoiMasks, registration: dict[str, Any]
) -> dict[str, Any]:
    return {
        "modalities": list(task.modalities),
        "scaling": scaling,
        "provenance": masks.provenance,
        "brain_agreement": masks.agreement,
        "registration": registration,
        "source_geometry": task.images["anatomy"].source_geometry(),
        "source_hash": {role: image.digest for role, image in task.images.items()},
        "jitter": None,
        "defaced": task.config.deface,
        "prep": task.config.to_dict(),
        "colour": None if task.images["companion"].chroma is None else COLOUR_NOTE,
    }

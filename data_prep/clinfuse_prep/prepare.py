"""One case from its files: read, check, align, mask, scale; the same steps for a cohort and for one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case, MaskArray
from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.checks import check_bone, check_brain, check_modalities, looks_like_ct
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid, overlap, resample, resample_mask, with_spacing
from clinfuse_prep.intensity import Scaling, grey_scaling, hu_scaling, percentile_scaling, to_unit
from clinfuse_prep.masks.auto import brain_mask
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.head import head_mr, without_holder
from clinfuse_prep.raw import RawImage, check_voxels
from clinfuse_prep.read import Files, read_image
from clinfuse_prep.sources.case import SourceCase

LEAST_OVERLAP = 0.4


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared case, what was noticed on the way, and the chrominance of a pseudo-colour companion.

    Attributes:
        chroma: (2, D, H, W) float32 in [-0.5, 0.5], or None.
    """

    case: Case
    findings: list[Finding] = field(default_factory=list)
    chroma: NDArray[np.float32] | None = None


def prepare_case(
    source: SourceCase, config: PrepConfig, *, case_id: str, patient: str, split: str
) -> Prepared:
    """Prepare one case of a source.

    Args:
        source: its files.
        case_id, patient: pseudonyms. split: "train", "val" or "test".

    Raises:
        InputError, GeometryError: the case cannot be used; the message names the pseudonym only.
    """
    notes = [
        Finding(case=case_id, severity=s, problem=p, expected=e, found=f, todo=t)
        for s, p, e, f, t in source.notes
    ]
    for role in ("anatomy", "companion"):
        if not source.files.get(role):
            raise InputError(
                f"the {role} image is missing",
                expected=f"an image pair ({' and '.join(source.modalities)})",
                found="one image without its partner",
                case=case_id,
                todo="add the missing image or leave the case out",
            )
    images = {
        role: read_image(list(paths), role=role.replace("_", " "), case=case_id, config=config)
        for role, paths in source.files.items()
        if paths
    }
    if source.facts.get("one_grid"):
        _check_one_grid(images, case_id)
    facts = {key: value for key, value in source.facts.items() if key != "one_grid"}
    attrs = {"patient": patient, "split": split, "simulated": source.simulated, **facts}
    return _prepare(images, source.modalities, config, case_id, attrs, notes)


def prepare_pair(
    anatomy: Files,
    companion: Files,
    *,
    brain: Files | None = None,
    bone: Files | None = None,
    lesion: Files | None = None,
    config: PrepConfig | None = None,
    case_id: str | None = None,
    modalities: tuple[str, str] | None = None,
) -> Case:
    """Prepare one pair outside any dataset, as `clinfuse fuse` and the service do.

    Args:
        anatomy, companion: a NIfTI, DICOM folder or picture slice each (path, list of paths, or RawImage).
        brain, bone, lesion: optional masks from files; they win over automatic ones.
        case_id: pseudonym to use; "case" if None.
        modalities: of both images; None infers the companion's ("CT", or "NM" for SPECT and PET).

    Returns:
        The case on the anatomy image's grid; `attrs["findings"]` lists what was noticed.
    """
    return prepare_pair_full(
        anatomy,
        companion,
        brain=brain,
        bone=bone,
        lesion=lesion,
        config=config,
        case_id=case_id,
        modalities=modalities,
    ).case


def prepare_pair_full(
    anatomy: Files,
    companion: Files,
    *,
    brain: Files | None = None,
    bone: Files | None = None,
    lesion: Files | None = None,
    config: PrepConfig | None = None,
    case_id: str | None = None,
    modalities: tuple[str, str] | None = None,
) -> Prepared:
    """As `prepare_pair`, with the findings and the chrominance beside the case."""
    config, name = config or PrepConfig(), case_id or "case"
    given = {"anatomy": anatomy, "companion": companion, "brain": brain, "bone": bone, "lesion": lesion}
    images = {
        role: read_image(files, role=role, case=name, config=config)
        for role, files in given.items()
        if files is not None
    }
    if modalities is None:
        ct = looks_like_ct(images["companion"]) or (
            images["companion"].grey8 and images["companion"].chroma is None
        )
        modalities = ("MR", "CT" if ct else "NM")
    attrs = {"patient": name, "split": "test", "simulated": False}
    return _prepare(images, modalities, config, name, attrs, [])


def _check_one_grid(images: Mapping[str, RawImage], case: str) -> None:
    anatomy = images["anatomy"].grid
    for role, image in images.items():
        if not image.grid.same_as(anatomy, tolerance_mm=0.05):
            raise GeometryError(
                f"the {role} image has an unequal shape or grid",
                expected=f"shape {anatomy.shape} at {_mm(anatomy)}",
                found=f"shape {image.grid.shape} at {_mm(image.grid)}",
                case=case,
                todo="export all images of the case on one grid",
            )


def _mm(grid: Grid) -> str:
    return "×".join(f"{s:.3g}" for s in grid.spacing) + " mm"


def _prepare(
    images: dict[str, RawImage],
    modalities: tuple[str, str],
    config: PrepConfig,
    case: str,
    attrs: dict[str, Any],
    findings: list[Finding],
) -> Prepared:
    anatomy, companion = images["anatomy"], images["companion"]
    for role in ("anatomy", "companion", "aligned_companion"):
        if role in images:
            check_voxels(images[role].volume, role.replace("_", " "), case)
    findings = [*findings, *_reading_notes(images, case)]
    findings += check_modalities(anatomy, companion, modalities[1], case)
    _check_slices(images, case)
    grid = anatomy.grid if config.spacing_mm is None else with_spacing(anatomy.grid, config.spacing_mm)
    share = overlap(companion.grid, grid)
    if share < LEAST_OVERLAP:
        raise GeometryError(
            "anatomy and companion image show different places",
            expected=f"at least {LEAST_OVERLAP:.0%} of the anatomy image inside the companion's field of view",
            found=f"{share:.0%}",
            case=case,
            todo="check that both belong to one patient and examination; repair the headers",
        )
    ct = modalities[1] == "CT"
    registration: dict[str, Any] = {"method": "header", "transform": np.eye(4).tolist()}
    raw_a = resample(anatomy.volume, anatomy.grid, grid, fill=float(anatomy.volume.min()))
    if config.n4:
        from clinfuse_prep.bias import n4

        raw_a = n4(raw_a, grid)
    moving = {
        role: _cleaned(images[role], ct) for role in ("companion", "aligned_companion") if role in images
    }
    if config.register != "none":
        from clinfuse_prep.registration import register

        registration, extra = register(
            raw_a, grid, moving["companion"], images["companion"].grid, config, case
        )
        findings += extra
    on_grid = {
        role: _moved(volume, images[role].grid, grid, registration if role == "companion" else None)
        for role, volume in moving.items()
    }
    masks, provenance, extra = _masks(images, raw_a, on_grid, grid, modalities, config, case)
    findings += extra
    scaling = _scalings(raw_a, on_grid["companion"], anatomy, companion, ct, config, case)
    attrs = {
        **attrs,
        "modalities": list(modalities),
        "scaling": scaling,
        "provenance": provenance,
        "registration": registration,
        "source_geometry": anatomy.source_geometry(),
        "source_hash": {role: image.digest for role, image in images.items()},
        "jitter": None,
        "prep": config.to_dict(),
        "colour": None if companion.chroma is None else "YCbCr BT.601; chrominance stored as `chroma`",
    }
    aligned = on_grid.get("aligned_companion")
    volumes = {"anatomy": to_unit(raw_a, scaling["anatomy"])}
    volumes |= {"companion": to_unit(on_grid["companion"], scaling["companion"])}
    if config.deface:
        from clinfuse_prep.deface import face_mask

        face = face_mask(masks["brain"], grid)
        volumes = {role: np.where(face, 0, volume).astype(np.float32) for role, volume in volumes.items()}
        attrs["defaced"] = True
    attrs["findings"] = [finding.as_dict() for finding in findings]
    made = Case(
        case_id=case,
        anatomy=volumes["anatomy"],
        companion=volumes["companion"],
        **masks,
        affine=grid.affine,
        modalities=modalities,
        aligned_companion=None if aligned is None else to_unit(aligned, scaling["companion"]),
        attrs=attrs,
    )
    return Prepared(case=made, findings=findings, chroma=_chroma(companion, grid))


def _reading_notes(images: Mapping[str, RawImage], case: str) -> list[Finding]:
    notes: dict[str, Finding] = {}
    for role in ("anatomy", "companion"):
        for problem, expected, found, todo in images[role].notes:
            notes[problem] = Finding(
                case=case, severity="info", problem=problem, expected=expected, found=found, todo=todo
            )
    return list(notes.values())


def _check_slices(images: Mapping[str, RawImage], case: str) -> None:
    """Pictures carry no position, so a pair of them must have equal shapes."""
    anatomy, companion = images["anatomy"], images["companion"]
    for role, image in images.items():
        pictures = image.kind == "png" or anatomy.kind == "png"
        if pictures and image.grid.shape != anatomy.grid.shape:
            raise GeometryError(
                f"anatomy and {'companion' if image is companion else role} have unequal shapes",
                expected=f"{anatomy.grid.shape} (slices, rows, columns)",
                found=f"{image.grid.shape}",
                case=case,
                todo="export both with the same matrix and slices",
            )


def _cleaned(image: RawImage, ct: bool) -> NDArray[np.float32]:
    """A companion without table, holder and frame (CT only)."""
    if not ct:
        return image.volume
    return without_holder(image.volume, image.grid.spacing, grey8=image.grey8)


def _moved(
    volume: NDArray[np.float32], grid: Grid, target: Grid, registration: dict[str, Any] | None
) -> NDArray[np.float32]:
    """The companion on the common grid, moved by the registration's matrix (target mm → companion mm)."""
    if registration is not None and registration["method"] != "header":
        transform = np.array(registration["transform"])
        shifted = Grid(grid.shape, np.linalg.inv(transform) @ grid.affine)
        return resample(volume, shifted, target, fill=float(volume.min()))
    return resample(volume, grid, target, fill=float(volume.min()))


def _scalings(
    raw_a: NDArray[np.float32],
    raw_c: NDArray[np.float32],
    anatomy: RawImage,
    companion: RawImage,
    ct: bool,
    config: PrepConfig,
    case: str,
) -> dict[str, Scaling]:
    def of(raw: NDArray[np.float32], image: RawImage, hu: bool) -> Scaling:
        if image.grey8:
            return grey_scaling()
        if hu:
            return hu_scaling(config.ct_window)
        return percentile_scaling(raw, head_mr(raw, image.grid.spacing), config.mr_percentiles, case)

    return {"anatomy": of(raw_a, anatomy, False), "companion": of(raw_c, companion, ct)}


def _masks(
    images: Mapping[str, RawImage],
    raw_a: NDArray[np.float32],
    on_grid: Mapping[str, NDArray[np.float32]],
    grid: Grid,
    modalities: tuple[str, str],
    config: PrepConfig,
    case: str,
) -> tuple[dict[str, MaskArray], dict[str, str], list[Finding]]:
    """Masks on the grid with the provenance of each: from files first, else automatic, else absent."""
    ct, grey8 = modalities[1] == "CT", images["companion"].grey8
    raw_c = on_grid.get("aligned_companion", on_grid["companion"])
    masks: dict[str, MaskArray] = {}
    provenance: dict[str, str] = {}
    findings: list[Finding] = []
    for role in ("brain", "bone", "lesion"):
        if role in images:
            check_finite_mask(images[role], role, case)
            masks[role] = resample_mask(
                images[role].volume > 0.5 * images[role].volume.max(), images[role].grid, grid
            )
            provenance[role] = "curated"
    if "bone" not in masks and ct:
        bone, how = bone_from_ct(raw_c, grid.spacing, grey8=grey8)
        masks["bone"], provenance["bone"] = bone.astype(np.uint8), f"auto:{how}"
    if "brain" not in masks and config.brain != "none":
        made = brain_mask(
            raw_a, raw_c if ct else None, masks.get("bone"), grid, grey8=grey8, method=config.brain, case=case
        )
        masks["brain"], provenance["brain"] = made.mask.astype(np.uint8), f"auto:{made.method}"
        findings += made.findings
    for role in ("brain", "bone", "lesion"):
        if role not in masks:
            masks[role], provenance[role] = np.zeros(grid.shape, np.uint8), "absent"
    findings += check_brain(masks["brain"] > 0, grid.spacing, case, grid.shape[0])
    findings += check_bone(masks["bone"] > 0, grid.spacing, case, ct=ct, planes=grid.shape[0])
    return masks, provenance, findings


def check_finite_mask(image: RawImage, role: str, case: str) -> None:
    """Refuse a mask with NaN or infinite voxels.

    Raises:
        InputError: non-finite voxels.
    """
    if not np.isfinite(image.volume).all():
        raise InputError(
            f"the {role} mask has non-finite voxels",
            expected="0 and 1",
            case=case,
            todo="export the mask again",
        )


def _chroma(companion: RawImage, grid: Grid) -> NDArray[np.float32] | None:
    if companion.chroma is None:
        return None
    return np.stack([resample(part, companion.grid, grid) for part in companion.chroma])

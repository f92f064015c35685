"""One simulated patient from (seed, index): draws, geometry, lesion, both scanners, the known misregistration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import MaskArray
from clinfuse.errors import ConfigError
from clinfuse_prep.cohort.anatomy import draw_anatomy, paint_head, sample_head
from clinfuse_prep.cohort.deform import draw_subject, template_coordinates
from clinfuse_prep.cohort.fields import Grid, Vector3, covering
from clinfuse_prep.cohort.lesions import Lesion, draw_lesion
from clinfuse_prep.cohort.scanner import as_hu, ct_image, draw_scanners, mr_image
from clinfuse_prep.cohort.tissue import CONTRASTS, Canvas
from clinfuse_prep.cohort.warp import Misregistration, draw_misregistration, resample

FIELD_LOW_MM = (-84.0, -128.0, -96.0)
FIELD_HIGH_MM = (108.0, 112.0, 96.0)
KINDS = ("tumour", "bone_tumour", "haemorrhage", "stroke")
STREAMS = (
    "subject",
    "habitus",
    "deformation",
    "texture",
    "lesion",
    "scanner",
    "mr_noise",
    "ct_noise",
    "warp",
)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A finished patient; arrays (D, H, W), all on `grid`.

    Attributes:
        mr: int16 a.u.; ct, ct_aligned: int16 HU, displaced by `warp` and not; brain, bone, lesion: uint8 masks in
            the MR frame (bone of the aligned CT).
        affected: uint8, where the lesion changed an image: its mask, oedema and partial-volume border.
        warp: the known misregistration.
        truth: JSON-able account of every drawn parameter.
    """

    name: str
    grid: Grid
    mr: NDArray[np.int16]
    ct: NDArray[np.int16]
    ct_aligned: NDArray[np.int16]
    brain: MaskArray
    bone: MaskArray
    lesion: MaskArray
    affected: MaskArray
    warp: Misregistration
    truth: dict[str, Any]


def lesion_kind(index: int) -> str:
    """The kinds follow each other from patient to patient; every eighth patient has no lesion."""
    return "none" if index % 8 == 7 else KINDS[index % len(KINDS)]


def mr_contrast(index: int, kind: str) -> str:
    """Every third patient is T2-weighted; tumours that are not are T1 after contrast agent."""
    if index % 3 == 2:
        return "T2"
    return "T1c" if "tumour" in kind else "T1"


def patient_grid(spacing_mm: Vector3) -> Grid:
    """The field of view of every patient, 192 × 240 × 192 mm (D, H, W), at a spacing (D, H, W) in mm."""
    return covering(FIELD_LOW_MM, FIELD_HIGH_MM, spacing_mm)


def simulate_patient(
    seed: int,
    index: int,
    spacing_mm: Vector3 = (2.0, 2.0, 2.0),
    *,
    kind: str | None = None,
    contrast: str | None = None,
) -> Patient:
    """Simulate patient `index` of the cohort `seed`; nothing else influences the result.

    Args:
        seed, index: the cohort's seed and the patient's number from 0.
        spacing_mm: voxel spacing (D, H, W), mm.
        kind: "tumour", "bone_tumour", "haemorrhage", "stroke" or "none"; default by `lesion_kind`. All other
            draws stay the same.
        contrast: "T1", "T1c" or "T2"; default by `mr_contrast`.

    Raises:
        ConfigError: there is no such kind or contrast.
    """
    kind = lesion_kind(index) if kind is None else kind
    contrast = mr_contrast(index, kind) if contrast is None else contrast
    if contrast not in CONTRASTS:
        raise ConfigError(
            "there is no such MR contrast", expected=" or ".join(CONTRASTS), found=repr(contrast)
        )
    rng = {name: np.random.default_rng([seed, index, number]) for number, name in enumerate(STREAMS)}
    grid = patient_grid(spacing_mm)
    subject, habitus = draw_subject(rng["subject"]), draw_anatomy(rng["habitus"])
    scanners = draw_scanners(rng["scanner"])
    lesion = draw_lesion(kind, rng["lesion"])
    at = template_coordinates(grid, subject, rng["deformation"])
    canvas, brain, affected, lesion_mask = _paint(grid, at, habitus, lesion, contrast, rng)
    mr = mr_image(canvas.mr, grid, scanners, rng["mr_noise"])
    aligned = ct_image(canvas.hu, grid, scanners, rng["ct_noise"])
    warp = draw_misregistration(rng["warp"], grid)
    displacement = warp.displacement(grid)
    head = canvas.hu > -500
    near = ndimage.binary_dilation(head, iterations=max(2, round(6 / min(grid.spacing))))
    moved = resample(aligned, grid, displacement, where=near)
    length = np.sqrt(np.square(displacement).sum(axis=0))[head]
    truth = {
        "simulated": True,
        "label": "simulated MR and simulated CT of one simulated patient; research use only",
        "seed": seed,
        "index": index,
        "spacing_mm": list(spacing_mm),
        "mr_contrast": contrast,
        "lesion": {
            **lesion.as_dict(),
            "voxels": int(lesion_mask.sum()),
            "volume_ml": _volume(lesion_mask, grid),
        },
        "subject": subject,
        "habitus": habitus,
        "scanners": scanners,
        "warp": {
            **warp.as_dict(),
            "max_displacement_mm": round(float(length.max()), 4),
            "mean_displacement_mm": round(float(length.mean()), 4),
        },
    }
    return Patient(
        name=f"sub-{index + 1:02d}",
        grid=grid,
        mr=mr,
        ct=as_hu(moved),
        ct_aligned=as_hu(aligned),
        brain=brain,
        bone=(canvas.bone >= 0.5).astype(np.uint8),
        lesion=lesion_mask,
        affected=affected,
        warp=warp,
        truth=truth,
    )


def _volume(mask: MaskArray, grid: Grid) -> float:
    """Volume of a mask in millilitres."""
    return round(float(mask.sum() * np.prod(grid.spacing) / 1000), 3)


def _paint(
    grid: Grid,
    at: np.ndarray,
    habitus: dict[str, Any],
    lesion: Lesion,
    contrast: str,
    rng: dict[str, np.random.Generator],
) -> tuple[Canvas, MaskArray, MaskArray, MaskArray]:
    """The painted head with its lesion: canvas, brain mask, affected region, lesion mask."""
    lesion.shape_on(grid, at, rng["lesion"])
    head = sample_head(grid, at, lesion.push(at), habitus)
    lesion.reshape_head(head)
    canvas = Canvas(contrast=contrast, shape=grid.shape)
    paint_head(head, canvas, rng["texture"])
    mask, affected = lesion.paint(head, canvas)
    brain = (head.fields["brain"] <= 0.3) & (head.fields["cavity"] <= 0)
    if lesion.within_brain:
        brain |= (mask > 0) & (head.fields["cavity"] <= 0)
    else:
        brain &= mask == 0
    return canvas, brain.astype(np.uint8), affected, mask

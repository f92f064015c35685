"""Write the embedded cohort: one folder of NIfTI files a patient, truth.json beside them, cohort.json on top."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clinfuse import RESEARCH_USE
from clinfuse.errors import ConfigError
from clinfuse_prep.cohort.fields import Vector3
from clinfuse_prep.cohort.patient import Patient, simulate_patient
from clinfuse_prep.cohort.template import LICENCE, SOURCE
from clinfuse_prep.raw import SIMULATED_MARK

IMAGES = ("mr", "ct", "ct_aligned")
MASKS = ("brain", "bone", "lesion")
Progress = Callable[[str, int, int], None]


def make_cohort(
    out_dir: str | Path,
    patients: int = 8,
    spacing_mm: float | Sequence[float] = 2.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Simulate a cohort of MR–CT pairs of the head and write it.

    Args:
        out_dir: folder to write `sub-XX/{mr,ct,ct_aligned,brain,bone,lesion}.nii.gz`, `sub-XX/truth.json` and
            `cohort.json` into; made if absent.
        patients: how many, 1 to 999. Lesions cycle through the kinds; patients 8, 16, … have none.
        spacing_mm: voxel spacing, one number or (D, H, W), each in [0.8, 6] mm.
        seed: patient i depends on (seed, i) only, whatever `patients` is.
        progress: called as progress(patient name, done, patients) after each patient.

    Returns:
        The patients' folders in order.

    Raises:
        ConfigError: an argument is out of its range.
    """
    spacing = checked_spacing(spacing_mm)
    if not 1 <= patients <= 999:
        raise ConfigError("the number of patients is out of range", expected="1 to 999", found=str(patients))
    if seed < 0:
        raise ConfigError("the seed must not be negative", expected="0 or more", found=str(seed))
    root = Path(out_dir)
    folders, rows = [], []
    for index in range(patients):
        patient = simulate_patient(seed, index, spacing)
        folders.append(write_patient(patient, root))
        rows.append(_row(patient))
        if progress is not None:
            progress(patient.name, index + 1, patients)
    _write_json(root / "cohort.json", _description(seed, spacing, rows))
    return folders


def checked_spacing(spacing_mm: float | Sequence[float]) -> Vector3:
    """A spacing as (D, H, W) in mm.

    Raises:
        ConfigError: not one or three finite numbers in [0.8, 6].
    """
    values = np.atleast_1d(np.asarray(spacing_mm, np.float64)).ravel()
    usable = values.size in (1, 3) and bool(np.isfinite(values).all())
    if not usable or values.min() < 0.8 or values.max() > 6:
        raise ConfigError(
            "the spacing is not usable",
            expected="one number or (D, H, W), each 0.8 to 6 mm",
            found=str(spacing_mm),
        )
    d, h, w = np.broadcast_to(values, 3)
    return float(d), float(h), float(w)


def write_patient(patient: Patient, root: Path) -> Path:
    """Write one patient's files; returns the folder `root/sub-XX`."""
    import nibabel as nib

    folder = root / patient.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*IMAGES, *MASKS):
        array = np.ascontiguousarray(getattr(patient, name).T)
        image = nib.Nifti1Image(array, patient.grid.affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = SIMULATED_MARK.encode()
        image.set_qform(patient.grid.affine, code=1)
        image.set_sform(patient.grid.affine, code=1)
        nib.save(image, folder / f"{name}.nii.gz")
    _write_json(folder / "truth.json", patient.truth)
    return folder


def _row(patient: Patient) -> dict[str, Any]:
    """One patient's line in cohort.json."""
    lesion = patient.truth["lesion"]
    return {
        "patient": patient.name,
        "mr_contrast": patient.truth["mr_contrast"],
        "lesion": lesion["kind"],
        "lesion_ml": lesion["volume_ml"],
    }


def _description(seed: int, spacing: Vector3, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of cohort.json."""
    return {
        "simulated": True,
        "label": "simulated MR and simulated CT; no image here was taken of a person",
        "notice": RESEARCH_USE,
        "source": SOURCE,
        "licence": LICENCE,
        "seed": seed,
        "spacing_mm": list(spacing),
        "axes": "files RAS+; spacing given as (z, y, x)",
        "units": {"mr": "a.u.", "ct": "HU", "ct_aligned": "HU"},
        "files": {
            "mr": "MR, the reference frame",
            "ct": "CT displaced against the MR by the warp in truth.json",
            "ct_aligned": "the same CT without the displacement (ground truth)",
            "brain": "brain mask",
            "bone": "bone mask of the aligned CT",
            "lesion": "lesion mask; empty if there is none",
        },
        "patients": rows,
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    """UTF-8 JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

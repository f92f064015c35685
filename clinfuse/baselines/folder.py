"""A folder of fused images as a method: anyone's results enter the table without running anyone's code.

For a case `ID` the folder holds one of
- `ID.npy`: (D, H, W) on the case's grid;
- `ID.nii.gz`, `ID.nii` or `sub-ID_desc-fused_….nii.gz`: any orientation, the case's grid after reordering to RAS+;
- `ID/` with one PNG per slice, or `ID.png` for a single one: 8-bit grey, in radiological display (the picture's
  left is the patient's right, its top anterior), numbered from inferior to superior.
Whole-number files of 8 bits are divided by 255; all others must lie in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinfuse.case import Case, FloatArray
from clinfuse.errors import GeometryError, InputError
from clinfuse.metrics.checks import as_image
from clinfuse.presets import Preset

AFFINE_TOLERANCE_MM = 0.1


def folder_method(folder: Path) -> Callable[[Case, Preset], FloatArray]:
    """The method that looks a case up in a folder.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError("no such folder of fused images", expected="a folder", todo="check the path")
    return partial(_look_up, folder)


def _look_up(folder: Path, case: Case, preset: Preset) -> FloatArray:
    """F of one case, (D, H, W) in [0, 1].

    Raises:
        InputError: nothing for this case, unreadable, or out of range. GeometryError: another grid.
    """
    for reader, candidates in (
        (_read_array, [folder / f"{case.case_id}.npy"]),
        (_read_nifti, _nifti_candidates(folder, case.case_id)),
        (_read_pictures, [folder / f"{case.case_id}.png", folder / case.case_id]),
    ):
        for path in candidates:
            if path.exists():
                return _checked(reader(path, case), case)
    raise InputError(
        "no fused image for this case in the folder",
        expected="<case id>.npy, .nii, .nii.gz or .png, sub-<case id>_desc-fused_*.nii.gz, or a folder of PNG",
        found="none of them",
        case=case.case_id,
        todo="name the files by case id (clinfuse inspect lists them)",
    )


def _nifti_candidates(folder: Path, case_id: str) -> list[Path]:
    named = [folder / f"{case_id}.nii.gz", folder / f"{case_id}.nii"]
    return [*named, *sorted(folder.glob(f"sub-{case_id}_desc-fused*.nii*"))]


def _read_array(path: Path, case: Case) -> NDArray[Any]:
    return np.load(path, allow_pickle=False)


def _read_nifti(path: Path, case: Case) -> NDArray[Any]:
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))
    if image.ndim != 3:
        raise GeometryError(
            "the fused image is not a volume",
            expected="3 axes",
            found=f"shape {image.shape}",
            case=case.case_id,
        )
    values = np.asarray(image.dataobj).transpose(2, 1, 0)
    _same_shape(values, case)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape], [1.0], indexing="ij")).reshape(4, -1)
    off = np.linalg.norm(((image.affine - case.affine) @ corners)[:3], axis=0).max()
    if off > AFFINE_TOLERANCE_MM:
        raise GeometryError(
            "the fused image lies elsewhere than the case",
            expected=f"corners within {AFFINE_TOLERANCE_MM} mm",
            found=f"{off:.2f} mm apart",
            case=case.case_id,
            todo="save it with the anatomy image's affine",
        )
    return np.asarray(values)


def _read_pictures(path: Path, case: Case) -> NDArray[Any]:
    files = sorted(path.glob("*.png"), key=_numbers) if path.is_dir() else [path]
    slices = []
    for file in files:
        with Image.open(file) as picture:
            slices.append(np.asarray(picture.convert("L"))[::-1, ::-1])
    if len({s.shape for s in slices}) != 1:
        raise GeometryError(
            "the slices of the fused image differ in size",
            expected=f"{case.shape[0]} slices of {case.shape[1:]}",
            found=f"{len(slices)} slices of {sorted({s.shape for s in slices})}",
            case=case.case_id,
        )
    return np.stack(slices)


def _numbers(path: Path) -> tuple[list[int], str]:
    """A picture's place among others: by the numbers in its name, 2 before 10, and by the name among equals."""
    return [int(run) for run in re.findall(r"\d+", path.stem)], path.name


def _checked(values: NDArray[Any], case: Case) -> FloatArray:
    _same_shape(values, case)
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 255
    return as_image("the fused image", values, case=case.case_id)


def _same_shape(values: NDArray[Any], case: Case) -> None:
    if values.shape != case.shape:
        raise GeometryError(
            "the fused image is not on the case's grid",
            expected=f"shape {case.shape} (D, H, W)",
            found=f"shape {values.shape}",
            case=case.case_id,
            todo="fuse the images as clinfuse prep wrote them, or save the result on their grid",
        )

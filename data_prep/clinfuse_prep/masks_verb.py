"""`clinfuse masks export|import`: masks out as NIfTI for correction in a viewer, and the corrected ones back.

Both images and masks go out without the face, unless `--no-deface` is given: the bone mask shows the facial skeleton.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE
from clinfuse.case import ROIS, Case
from clinfuse.console import counted, progress, say
from clinfuse.errors import ClinfuseError, GeometryError, InputError
from clinfuse.folders import check_writable
from clinfuse_prep.checks import check_brain
from clinfuse_prep.deface import face_of
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.given import LEAST_KEPT, placed
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.raw import SIMULATED_MARK
from clinfuse_prep.store import CaseStore

FACE = "face.nii.gz"
"""What an export left out, for the import (drawn by where the brain lies, it shows nobody)."""


def masks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export or import.

    Returns:
        result, cases (done), lost (could not be exported or imported), problems.
    """
    store, folder = CaseStore(arguments.data), Path(arguments.dir)
    store.manifest_bytes()  # without one the dataset is not whole
    wanted = [part for part in (arguments.cases or "").split(",") if part]
    ids = wanted or store.case_ids()
    if arguments.action == "export":
        return _export(store, ids, folder, images=arguments.images, deface=not arguments.no_deface)
    return _import(store, wanted or _exported(store, folder), folder)


def _export(store: CaseStore, ids: list[str], folder: Path, *, images: bool, deface: bool) -> dict[str, Any]:
    check_writable(folder, "--dir")
    problems = []
    for case_id in progress(ids, label="cases"):
        try:
            export_case(store.read(case_id), folder, images=images, deface=deface)
        except ClinfuseError as error:
            problems.append(_told(error, case_id))
    done = len(ids) - len(problems)
    say(f"masks of {counted(done, 'case')} in {folder}; correct them, then: clinfuse masks import")
    say(RESEARCH_USE)
    return _result(str(folder), done, problems)


def _told(error: ClinfuseError, case_id: str) -> Finding:
    """What a case was lost by, said at once; the other cases go on."""
    say(f"  error · {error}")
    return Finding.from_error(error, case_id)


def _result(place: str, done: int, problems: list[Finding]) -> dict[str, Any]:
    told = [problem.as_dict() for problem in problems]
    return {"result": place, "cases": done, "lost": len(told), "problems": told}


def _exported(store: CaseStore, folder: Path) -> list[str]:
    """The cases of the dataset that have a folder there.

    Raises:
        InputError: none has.
    """
    ids = [case_id for case_id in store.case_ids() if (folder / case_id).is_dir()]
    if not ids:
        raise InputError(
            "no case of the dataset has a folder of masks there",
            expected="<case id>/{brain,bone,lesion}.nii.gz as clinfuse masks export writes them",
            found="none",
            todo="export first, and keep the folders' names",
        )
    return ids


def export_case(case: Case, folder: Path, *, images: bool = False, deface: bool = True) -> Path:
    """Write `<folder>/<case id>/{brain,bone,lesion}.nii.gz` on the case's grid, and with `images` the pair.

    Args:
        deface: take the face out of masks and images, and write where it was as `FACE`.

    Raises:
        InputError: a brain mask that is empty, from which no face can be found.
    """
    grid, ct = Grid(case.shape, case.affine), case.modalities[1] == "CT"
    face = face_of(case.masks, grid, ct=ct) if deface else np.zeros(case.shape, dtype=bool)
    place = folder / case.case_id
    place.mkdir(parents=True, exist_ok=True)
    _save(face.astype(np.uint8), case, place / FACE, "removed face")
    for roi, mask in case.masks.items():
        _save(mask * ~face, case, place / f"{roi}.nii.gz", f"{roi} mask")
    if images:
        for role in ("anatomy", "companion"):
            shown = np.where(face, np.float32(0), getattr(case, role))
            _save(shown, case, place / f"{role}.nii.gz", f"{role} image")
    return place


def _save(volume: NDArray[Any], case: Case, path: Path, about: str) -> None:
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), case.affine)
    image.header.set_xyzt_units("mm")
    words = SIMULATED_MARK if case.attrs.get("simulated") else f"clinfuse {about}. Research use only."
    image.header["descrip"] = words.encode()
    nib.save(image, path)


def _import(store: CaseStore, ids: list[str], folder: Path) -> dict[str, Any]:
    rows: dict[str, dict[Any, Any]] = {
        str(row["case_id"]): row for row in store.manifest().to_dict(orient="records")
    }
    done, problems = [], []
    for case_id in progress(ids, label="cases"):
        try:
            done += [case_id] if import_case(store, case_id, folder) else []
        except ClinfuseError as error:
            problems.append(_told(error, case_id))
    # of all cases: an import that was killed has changed some whose rows it never wrote
    rows |= {case_id: store.row(case_id) for case_id in store.case_ids()}
    store.commit_manifest({str(key): value for key, value in row.items()} for row in rows.values())
    say(f"{len(done)} of {counted(len(ids), 'case')} corrected\n{RESEARCH_USE}")
    return _result(store.url, len(done), problems)


def import_case(store: CaseStore, case_id: str, folder: Path) -> list[str]:
    """Take back the masks of a case that differ from the stored ones, with provenance `corrected`.

    Where the export left out the face (`FACE` beside the masks) the case keeps its own: what is missing there was
    removed for privacy, and is no correction. To correct masks in the face, export with `--no-deface`.

    The masks that were there stay readable as `<roi>_before` arrays, for the ablation auto against corrected.

    Returns:
        The names of the masks that changed.

    Raises:
        InputError: a mask is damaged, not binary, empty (brain), or no file of the case is there.
        GeometryError: a mask shows another place than the case.
    """
    place = folder / case_id
    files = {roi: path for roi in ROIS if (path := place / f"{roi}.nii.gz").is_file()}
    if not files:
        raise InputError(
            "no mask files for the case",
            expected="brain, bone or lesion .nii.gz",
            case=case_id,
            todo="export first",
        )
    case = store.read(case_id)
    grid = Grid(case.shape, case.affine)
    face = _left_out(place / FACE, grid, case_id)
    changed = {}
    for roi, path in files.items():
        image = read_nifti(path, role=f"{roi} mask", case=case_id)
        if not np.isin(image.volume, (0, 1)).all():
            raise InputError(
                f"the corrected {roi} mask is not binary",
                expected="0 and 1",
                found="other values",
                case=case_id,
            )
        mask, kept = placed(image.volume, image.grid, grid, roi, case_id)
        if kept < LEAST_KEPT:
            raise GeometryError(
                f"most of the corrected {roi} mask is not on the case's grid",
                expected=f"at least {LEAST_KEPT:.0%} of its volume",
                found=f"{kept:.0%}",
                case=case_id,
                todo="correct the exported mask, and save it on its own grid",
            )
        mask = np.where(face, case.masks[roi], mask)
        if not np.array_equal(mask, case.masks[roi]):
            changed[roi] = mask
    if "brain" in changed:
        check_brain(changed["brain"] > 0, grid.spacing, case_id, grid.shape[0])
    if changed:
        store.replace_masks(case_id, changed, "corrected")
    return sorted(changed)


def _left_out(path: Path, grid: Grid, case_id: str) -> NDArray[np.bool_]:
    """Voxels (D, H, W) of the face that the export took out; none where it says of none."""
    if not path.is_file():
        return np.zeros(grid.shape, dtype=bool)
    image = read_nifti(path, role="removed face", case=case_id)
    return np.asarray(placed(image.volume, image.grid, grid, "face", case_id)[0] > 0)

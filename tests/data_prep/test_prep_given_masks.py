"""A mask that was given never becomes "no mask" without a word: other places, other names, cut off, too small."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.sources import find_cases
from clinfuse_prep.store import CaseStore
from clinfuse_prep.verbs import MASKS
from make_sources import AFFINE, head, synthrad, write_nifti, write_pair

from clinfuse.errors import ConfigError, GeometryError

Prep = Callable[..., dict[str, Any]]


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def lesion() -> np.ndarray:
    mask = np.zeros_like(head()[2])
    mask[5:8, 12:18, 12:16] = 1
    return mask


@pytest.mark.parametrize("roi", ["brain", "bone", "lesion"])
def test_a_mask_of_another_place_costs_the_case(roi: str, tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 2)
    mask = lesion() if roi == "lesion" else head()[2]
    write_nifti(source / "Task1" / "brain" / "1BA001" / f"{roi}.nii.gz", mask, moved(900.0))
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 1)
    (told,) = [p for p in result["problems"] if p["severity"] == "error"]
    assert f"{roi} mask shows another place" in told["problem"]


def test_a_lesion_that_is_cut_off_or_vanishes_is_told_of(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    files = pair / "mr.nii.gz", pair / "ct.nii.gz"
    whole = prepare_pair(*files, lesion=write_nifti(tmp_path / "whole.nii.gz", lesion()))
    assert not any("lesion" in f["problem"] for f in whole.attrs["findings"])
    crop, affine = lesion()[4:9, 10:20, 10:18], AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [10, 10, 4, 1])[:3]
    cropped = prepare_pair(*files, lesion=write_nifti(tmp_path / "crop.nii.gz", crop, affine))
    assert np.array_equal(cropped.lesion, whole.lesion)
    cut = prepare_pair(*files, lesion=write_nifti(tmp_path / "cut.nii.gz", lesion(), moved(75.0)))
    (told,) = [f for f in cut.attrs["findings"] if "most of the lesion mask" in f["problem"]]
    assert told["severity"] == "warning" and 0 < cut.lesion.sum() < lesion().sum() / 2
    point, fine = np.zeros((5, 5, 5), np.uint8), np.diag([-1.0, 1.0, 1.0, 1.0])
    point[2, 2, 2], fine[:3, 3] = 1, (AFFINE @ [14.5, 14.5, 6.5, 1])[:3]
    with pytest.raises(GeometryError, match="none of its 1 voxels"):
        prepare_pair(*files, lesion=write_nifti(tmp_path / "point.nii.gz", point, fine))
    empty = prepare_pair(*files, lesion=write_nifti(tmp_path / "empty.nii.gz", lesion() * 0))
    assert not empty.lesion.any() and empty.attrs["provenance"]["lesion"] == "curated"


@pytest.mark.parametrize(("roi", "mm"), [("brain", 900.0), ("lesion", 900.0), ("lesion", 75.0)])
def test_a_corrected_mask_of_another_place_is_refused(
    roi: str, mm: float, tmp_path: Path, prep: Prep
) -> None:
    source, out, folder = synthrad(tmp_path / "s", 1), tmp_path / "d.zarr", tmp_path / "masks"
    write_nifti(source / "Task1" / "brain" / "1BA001" / "lesion.nii.gz", lesion())
    prep(source, "--out", out)
    words = argparse.ArgumentParser()
    MASKS.add_arguments(words)
    MASKS.run(words.parse_args(["export", str(out), "--dir", str(folder)]))
    store = CaseStore(out)
    (name,) = store.case_ids()
    before = store.read(name)
    image = nib.load(folder / name / f"{roi}.nii.gz")
    shift = np.eye(4)
    shift[0, 3] = mm
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), shift @ image.affine), folder / name / f"{roi}.nii.gz"
    )
    result = MASKS.run(words.parse_args(["import", str(out), "--dir", str(folder)]))
    assert (result["cases"], result["lost"]) == (0, 1)
    after = store.read(name)
    assert np.array_equal(after.masks[roi], before.masks[roi]) and before.masks[roi].any()
    assert after.attrs["provenance"] == before.attrs["provenance"]


def test_a_folder_of_masks_of_no_case_is_refused(tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 2)
    write_nifti(tmp_path / "m" / "BA001" / "lesion.nii.gz", lesion())
    with pytest.raises(ConfigError, match=r"mask for no case.*named as the case is at the source") as caught:
        prep(source, "--out", tmp_path / "d.zarr", "--masks", tmp_path / "m")
    assert "masks import" in str(caught.value) and "BA001" not in str(caught.value)
    assert not (tmp_path / "d.zarr").exists() and not (tmp_path / "d.zarr.key").exists()
    write_nifti(tmp_path / "m" / "1BA001" / "lesion.nii", lesion())
    result = prep(source, "--out", tmp_path / "d.zarr", "--masks", tmp_path / "m")
    (told,) = [p for p in result["problems"] if "--masks" in p["problem"]]
    assert (told["severity"], told["found"]) == ("warning", "1 of other names")
    assert sorted(CaseStore(tmp_path / "d.zarr").manifest()["lesion_provenance"]) == ["absent", "curated"]


def test_a_case_name_that_patients_share_gives_no_mask_to_the_wrong_one(tmp_path: Path) -> None:
    from clinfuse_prep.sources.mask_folder import with_masks

    write_pair(tmp_path / "a")
    rows = [
        {"patient": patient, "case": case, "anatomy": "a/mr.nii.gz", "companion": "a/ct.nii.gz"}
        for patient, case in (("one", "first"), ("two", "first"), ("two", "../out"))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    cases = find_cases(tmp_path / "t.csv")[1]
    for place in ("m/first", "out"):
        write_nifti(tmp_path / place / "lesion.nii.gz", lesion())
    with pytest.raises(ConfigError, match="patient/case"):
        with_masks(cases, tmp_path / "m")
    write_nifti(tmp_path / "m" / "two" / "first" / "lesion.nii.gz", lesion())
    given, (warning,) = with_masks(cases, tmp_path / "m")
    assert ["lesion" in case.files for case in given] == [False, True, False]
    assert warning.found == "1 of other names"

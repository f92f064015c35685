"""Each layout is recognised, read with the right roles, and prepared; splits go by patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from clinfuse_prep.read import read_image
from clinfuse_prep.sources import find_cases
from clinfuse_prep.split import split_patients
from clinfuse_prep.store import CaseStore
from make_sources import bids, head, pictures, synthrad, write_nifti, write_pair, write_series

from clinfuse.errors import ConfigError, InputError

Prep = Callable[..., dict[str, Any]]


def cohort(root: Path, patients: int = 8) -> Path:
    root.mkdir(parents=True)
    (root / "cohort.json").write_text(json.dumps({"simulated": True}))
    for number in range(1, patients + 1):
        mr, ct, brain = head(number)
        folder = root / f"sub-{number:02d}"
        roles = {
            "mr": mr,
            "ct": np.roll(ct, 1, 2),
            "ct_aligned": ct,
            "brain": brain,
            "bone": ct > 600,
            "lesion": brain * 0,
        }
        for name, volume in roles.items():
            write_nifti(folder / f"{name}.nii.gz", volume.astype(np.float32))
        (folder / "truth.json").write_text(json.dumps({"lesion": "stroke"}))
    return root


def table(root: Path) -> Path:
    for name in ("a", "b"):
        write_pair(root / name)
    rows = [
        {"patient": "one", "anatomy": "a/mr.nii.gz", "companion": "a/ct.nii.gz"},
        {"patient": "two", "anatomy": "b/mr.nii.gz", "companion": "b/ct.nii.gz"},
    ]
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root / "table.csv"


def dicom(root: Path) -> Path:
    mr, ct, _ = head()
    for patient in ("anna", "berta"):
        write_series(root / patient / "1" / "mr", mr, "MR")
        write_series(root / patient / "1" / "ct", ct, "CT")
    return root


def loose(root: Path) -> Path:
    write_pair(root, names=("t1", "ct_hu"))
    return root


SOURCES = {
    "cohort": (cohort, 8),
    "pairs": (pictures, 3),
    "synthrad": (synthrad, 3),
    "bids": (bids, 2),
    "table": (table, 2),
    "dicom": (dicom, 2),
    "nifti-pair": (loose, 1),
}


@pytest.mark.parametrize("layout", SOURCES)
def test_a_layout_is_recognised_and_prepared(layout: str, tmp_path: Path, prep: Prep) -> None:
    make, count = SOURCES[layout]
    source = make(tmp_path / "source")
    found, cases, _ = find_cases(source)
    assert (found, len(cases)) == (layout, count)
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["layout"], result["cases"], result["lost"]) == (layout, count, 0)
    store = CaseStore(tmp_path / "d.zarr")
    for name in store.case_ids():
        case = store.read(name)
        assert case.anatomy.max() > 0.5
        assert case.brain.any() and case.bone.any()
        assert case.attrs["provenance"]["brain"] == (
            "curated" if layout == "cohort" else "auto:ct-intracranial"
        )


def test_the_cohort_keeps_its_truth_and_says_that_it_is_simulated(tmp_path: Path, prep: Prep) -> None:
    result = prep(cohort(tmp_path / "source"), "--out", tmp_path / "d.zarr")
    assert result["splits"] == {"train": 5, "val": 1, "test": 2}
    store = CaseStore(tmp_path / "d.zarr")
    case = store.read(store.case_ids("test")[0])
    assert case.attrs["simulated"] is True
    assert case.aligned_companion is not None
    assert not np.array_equal(case.aligned_companion, case.companion)
    assert case.attrs["truth"] == {"lesion": "stroke"}
    assert set(case.attrs["provenance"].values()) == {"curated"}


def test_pictures_are_stacked_by_number_and_gaps_reported(tmp_path: Path, prep: Prep) -> None:
    source = pictures(tmp_path / "source", 1)
    (source / "case_1" / "CT" / "1004.png").unlink()
    result = prep(source, "--out", tmp_path / "d.zarr")
    store = CaseStore(tmp_path / "d.zarr")
    case = store.read(store.case_ids()[0])
    assert case.attrs["slice_numbers"] == [3, 5, 7]
    assert case.spacing == (5.0, 1.0, 1.0)
    problems = {problem["problem"]: problem["found"] for problem in result["problems"]}
    assert problems["some slices have no partner and were left out"] == "1 without: 4"
    assert problems["the slice numbers have gaps"] == "missing 4, 6"
    assert any(f["problem"] == "the slices carry no spacing" for f in case.attrs["findings"])


def test_the_pictures_top_is_anterior_and_their_left_is_the_patients_right(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", 1)
    image = read_image(source / "case_1" / "MRI", role="anatomy")
    from PIL import Image

    plane = np.asarray(Image.open(source / "case_1" / "MRI" / "1003.png"))
    assert np.array_equal(image.volume[0][::-1, ::-1], plane)
    assert (np.diag(image.grid.affine)[:3] > 0).all()


def test_the_head_holder_of_a_ct_goes(tmp_path: Path, prep: Prep) -> None:
    prep(pictures(tmp_path / "source", 1), "--out", tmp_path / "d.zarr")
    store = CaseStore(tmp_path / "d.zarr")
    case = store.read(store.case_ids()[0])
    assert case.companion[:, :3].max() == 0
    assert not case.bone[:, :3].any()


def test_gantry_tilt_and_mixed_distances_are_undone(tmp_path: Path) -> None:
    heights = [0, 5, 10, 15, 20, 25, 35, 45, 55, 65, 75, 85]
    volume = np.full((12, 32, 28), -1000, np.float32)
    for index, height in enumerate(heights):
        volume[index, 12:16, 10:14] = height
    folder = write_series(tmp_path / "s", volume, tilt_deg=15.0, heights=[float(h) for h in heights])
    image = read_image(folder, role="companion")
    texts = " ".join(" ".join(note) for note in image.notes)
    assert "15.0°" in texts and "unequal distances" in texts
    assert image.grid.spacing[0] == pytest.approx(5 * np.cos(np.deg2rad(15)), abs=1e-3)
    weights = image.volume - image.volume.min()
    z, y, x = np.indices(weights.shape)
    mm = np.stack([x, y, z, np.ones_like(x)], -1) @ image.grid.affine.T
    centres = [
        (mm[k, ..., :3] * plane[..., None]).sum((0, 1)) / plane.sum() for k, plane in enumerate(weights)
    ]
    drift = np.ptp(np.array(centres), axis=0)
    assert drift[0] < 0.01
    assert drift[1] < 0.01, "a block at one place in patient coordinates must not drift with the slices"


def test_paths_that_leave_the_tables_folder_are_not_followed(tmp_path: Path, prep: Prep) -> None:
    write_pair(tmp_path / "outside")
    write_pair(tmp_path / "in" / "a")
    text = "anatomy,companion\n../outside/mr.nii.gz,a/ct.nii.gz\na/mr.nii.gz,a/ct.nii.gz\n"
    (tmp_path / "in" / "t.csv").write_text(text)
    result = prep(tmp_path / "in" / "t.csv", "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 1)


def test_link_loops_end(tmp_path: Path) -> None:
    source = synthrad(tmp_path / "source", 1)
    (source / "Task1" / "loop").symlink_to(source, target_is_directory=True)
    _, cases, _ = find_cases(source, "synthrad")
    assert cases
    subjects = bids(tmp_path / "bids", 2)
    (subjects / "derivatives" / "loop").symlink_to(subjects, target_is_directory=True)
    (subjects / "sub-09").symlink_to(subjects / "sub-09")
    assert len(find_cases(subjects)[1]) == 2
    with pytest.raises(InputError, match="no case was found"):
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "self").symlink_to(empty, target_is_directory=True)
        find_cases(empty)


def test_unknown_layouts_and_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layout"):
        find_cases(tmp_path, "xnat")
    with pytest.raises(InputError, match="does not exist"):
        find_cases(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("count", "sizes"), [(8, (5, 1, 2)), (7, (5, 1, 1)), (3, (1, 1, 1)), (20, (13, 3, 4))]
)
def test_split_sizes(count: int, sizes: tuple[int, int, int]) -> None:
    splits = split_patients([f"p{i}" for i in range(count)])
    assert tuple(list(splits.values()).count(name) for name in ("train", "val", "test")) == sizes


def test_a_resumed_draw_equals_an_undisturbed_one() -> None:
    names = [f"p{i:02d}" for i in range(17)]
    whole = split_patients(names, seed=3)
    for count in (1, 5, 16):
        assert split_patients(names, seed=3, known={n: whole[n] for n in names[:count]}) == whole


def test_splits_stay_when_patients_are_added() -> None:
    first = split_patients([f"p{i}" for i in range(8)])
    more = split_patients([f"p{i}" for i in range(12)], known=first)
    assert {p: more[p] for p in first} == first


def test_two_examinations_of_a_patient_share_a_split(tmp_path: Path, prep: Prep) -> None:
    root = tmp_path / "source"
    for subject in range(6):
        for session in (1, 2):
            mr, ct, _ = head(subject)
            place = root / f"sub-{subject}" / f"ses-{session}"
            write_nifti(place / "anat" / f"sub-{subject}_ses-{session}_T1w.nii.gz", mr)
            write_nifti(place / "ct" / f"sub-{subject}_ses-{session}_ct.nii.gz", ct)
    prep(root, "--out", tmp_path / "d.zarr")
    rows = CaseStore(tmp_path / "d.zarr").manifest()
    assert len(rows) == 12
    assert (rows.groupby("patient")["split"].nunique() == 1).all()


def test_empty_cells_of_a_parquet_table_are_empty(tmp_path: Path) -> None:
    write_pair(tmp_path)
    table = pd.DataFrame(
        {"patient": ["a", None], "anatomy": ["mr.nii.gz"] * 2, "companion": ["ct.nii.gz"] * 2}
    )
    table.assign(lesion=[None, None], bone=[np.nan, np.nan]).to_parquet(tmp_path / "t.parquet")
    layout, cases, _ = find_cases(tmp_path / "t.parquet")
    assert layout == "table"
    assert [case.patient for case in cases] == ["a", "row 2"]
    assert all(set(case.files) == {"anatomy", "companion"} for case in cases)


def test_a_simulated_ct_says_so_wherever_it_is_given(tmp_path: Path, prep: Prep) -> None:
    from clinfuse_prep.cohort.make import make_cohort
    from clinfuse_prep.prepare import prepare_pair

    folder = make_cohort(tmp_path / "cohort", patients=1, spacing_mm=6.0)[0]
    mr, ct, brain = (folder / f"{name}.nii.gz" for name in ("mr", "ct", "brain"))
    assert prepare_pair(mr, ct, brain=brain).attrs["simulated"] is True
    image = nib.load(ct)
    image.header["descrip"] = b"a SIMULATED patient called Smith"
    nib.save(image, tmp_path / "plain.nii.gz")
    assert prepare_pair(mr, tmp_path / "plain.nii.gz", brain=brain).attrs["simulated"] is False
    table = tmp_path / "t.csv"
    table.write_text(f"anatomy,companion,brain\n{mr},{ct},{brain}\n")
    prep(table, "--out", tmp_path / "d.zarr")
    assert bool(CaseStore(tmp_path / "d.zarr").manifest()["simulated"].all())


def test_dicom_series_mixed_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    mr, ct, _ = head()
    for name, volume, kind in (("m", mr, "MR"), ("c", ct, "CT"), ("scout", ct[:2], "CT")):
        for path in write_series(tmp_path / "apart" / name, volume, kind).iterdir():
            target = tmp_path / "dicom" / "patient" / f"{name}{path.stem}"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    for source in (tmp_path / "dicom", tmp_path / "dicom" / "patient"):
        layout, (case,), _ = find_cases(source)
        assert layout == "dicom"
        assert {role: len(files) for role, files in case.files.items()} == {"anatomy": 12, "companion": 12}
        assert "several CT series" in case.notes[0][1]

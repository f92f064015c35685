"""Images of two patients are never paired, and no case replaces another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest
from clinfuse_prep.batch import Job, check_distinct
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.pseudonym import open_key
from clinfuse_prep.sources import SourceCase, find_cases
from clinfuse_prep.store import CaseStore
from make_sources import head, synthrad, write_pair, write_series

from clinfuse.errors import ConfigError, InputError

Prep = Callable[..., dict[str, Any]]


def series(folder: Path, kind: str, patient: str, slices: int = 12, study: str = "") -> Path:
    """A series in a folder that may hold others, named by none of them."""
    volume = head()[0 if kind == "MR" else 1][:slices]
    made = write_series(folder / f"{kind}{patient}{slices}.aside", volume, kind, patient=patient)
    for path in made.iterdir():
        data = pydicom.dcmread(path)
        data.StudyInstanceUID = study or "1.2.3"
        data.save_as(folder / f"{made.stem}{study}{path.name}")
        path.unlink()
    made.rmdir()
    return folder


def owners(case: SourceCase) -> set[str]:
    return {pydicom.dcmread(path).PatientID for files in case.files.values() for path in files}


def two_patients(folder: Path) -> Path:
    """The MR of one and the CT of the other are larger, so that the largest of each kind are of two patients."""
    for kind, patient, slices in (
        ("MR", "ALICE", 12),
        ("CT", "ALICE", 8),
        ("MR", "BOB", 8),
        ("CT", "BOB", 12),
    ):
        series(folder, kind, patient, slices)
    return folder


@pytest.mark.parametrize("place", ["", "shared"])
def test_two_patients_in_one_folder_are_two_cases(
    place: str, tmp_path: Path, prep: Prep, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    two_patients(source / place)
    _, cases, _ = find_cases(source)
    assert [owners(case) for case in cases] == [{"ALICE"}, {"BOB"}]
    assert all({"anatomy", "companion"} <= case.files.keys() for case in cases)
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (2, 0)
    assert CaseStore(tmp_path / "d.zarr").manifest()["patient"].nunique() == 2
    told = [p for p in result["problems"] if "several patients" in p["problem"]]
    assert len(told) == 2 and {p["found"] for p in told} == {"2"}
    printed = capsys.readouterr()
    assert not any(name in printed.out + printed.err + str(result) for name in ("ALICE", "BOB"))
    links = pd.read_csv(tmp_path / "d.zarr.key" / "links.csv")
    folder = place or "source"
    assert sorted(links["source_patient"]) == [f"{folder}/ALICE", f"{folder}/BOB"]


def test_a_stray_image_in_the_source_leaves_the_patients_folders_alone(tmp_path: Path, prep: Prep) -> None:
    source = tmp_path / "source"
    for folder, patient in (("anna", "ALICE"), ("berta", "BOB")):
        series(series(source / folder, "MR", patient), "CT", patient)
    before = find_cases(source)[1]
    series(source, "CT", "ALICE", 1)
    stray, *after = find_cases(source)[1]
    assert after == before and [case.name for case in after] == ["anna", "berta"]
    assert [len(files) for files in stray.files.values()] == [1]
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (2, 1)
    assert any("directly in the source" in p["problem"] for p in result["problems"])


def test_halves_of_two_patients_are_both_lost(tmp_path: Path, prep: Prep) -> None:
    source = tmp_path / "source"
    series(series(source / "shared", "MR", "ALICE"), "CT", "BOB")
    series(series(source / "whole", "MR", "CAROL"), "CT", "CAROL")
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 2)
    assert sum("image is missing" in p["problem"] for p in result["problems"]) == 2


def test_without_any_patient_id_a_folder_is_one_patient_and_the_source_goes_by_study(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for kind, study in (("MR", "1.1"), ("CT", "1.2")):
        series(source / "anna", kind, "", study=study)
    (case,) = find_cases(source)[1]
    assert (case.name, set(case.files)) == ("anna", {"anatomy", "companion"})
    direct = find_cases(source / "anna")[1]
    assert [set(case.files) for case in direct] == [{"anatomy"}, {"companion"}]
    series(source / "anna", "CT", "ALICE")
    assert len(find_cases(source)[1]) == 3, "images without an ID may be another's than the one that has one"


def test_patients_of_one_name_at_two_sites_are_two(tmp_path: Path, prep: Prep) -> None:
    source = tmp_path / "source"
    for seed, place in enumerate(("siteA/P01", "siteB/P01", "siteB/P02")):
        write_pair(source / place, seed)
    result = prep(source, "--out", tmp_path / "d.zarr", "--layout", "synthrad")
    store = CaseStore(tmp_path / "d.zarr")
    rows = store.manifest()
    assert (result["cases"], result["lost"], len(store.case_ids())) == (3, 0, 3)
    assert rows["case_id"].is_unique and rows["patient"].nunique() == 3
    assert sum("several folders have the name" in p["problem"] for p in result["problems"]) == 2
    key = open_key(tmp_path / "d.zarr.key")
    assert key.case("P02", "P02") in store.case_ids(), "the others are named as ever"
    assert not any(word in str(result) for word in ("siteA", "P01"))


def test_a_source_named_as_a_folder_in_it_and_links_to_a_folder(tmp_path: Path) -> None:
    source = write_pair(tmp_path / "P01", names=("t1", "ct_hu"))
    write_pair(source / "P01", 1, names=("t1", "ct_hu"))
    assert [case.name for case in find_cases(source)[1]] == [".", "P01"]
    linked = synthrad(tmp_path / "linked", 1)
    (linked / "Task1" / "all").mkdir()
    os.symlink(linked / "Task1" / "brain" / "1BA001", linked / "Task1" / "all" / "1BA001")
    assert [case.name for case in find_cases(linked, "synthrad")[1]] == ["1BA001"]


def test_a_table_that_names_a_case_twice_is_refused_before_any_work(tmp_path: Path, prep: Prep) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path / name)
    rows = [
        {"patient": "ALICE", "case": "first", "anatomy": f"{n}/mr.nii.gz", "companion": f"{n}/ct.nii.gz"}
        for n in "abc"
    ]
    rows[1]["case"] = "second"
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"twice.*rows 1 and 3") as caught:
        prep(tmp_path / "t.csv", "--out", tmp_path / "d.zarr")
    assert "ALICE" not in str(caught.value) and not (tmp_path / "d.zarr.key").exists()


def test_two_jobs_never_have_one_case_id() -> None:
    case = SourceCase(patient="p", name="n", files={})
    jobs = [
        Job(source=case, case_id=name, patient="p1", split="train", store="d", config=PrepConfig())
        for name in ("c1", "c2", "c1")
    ]
    check_distinct(jobs[:2])
    with pytest.raises(ConfigError, match=r"one case id.*found 2 of 3 cases"):
        check_distinct(jobs)


def test_a_plan_of_cases_of_one_name_and_size(tmp_path: Path, prep: Prep) -> None:
    write_pair(tmp_path / "a")
    rows = [
        {"patient": patient, "case": "first", "anatomy": "a/mr.nii.gz", "companion": "a/ct.nii.gz"}
        for patient in ("one", "two")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    assert prep(tmp_path / "t.csv", "--out", tmp_path / "d.zarr", "--plan")["cases"] == 2


@pytest.mark.parametrize(("other", "told"), [("ALICE", False), ("BOB", True), ("", False)])
def test_a_pair_whose_files_name_two_patients_is_told_of(other: str, told: bool, tmp_path: Path) -> None:
    mr, ct = head()[:2]
    made = [
        write_series(tmp_path / "a", mr, "MR", patient="ALICE"),
        write_series(tmp_path / "b", ct, "CT", patient=other),
    ]
    case = prepare_pair(*made)
    found = [f for f in case.attrs["findings"] if "different patients" in f["problem"]]
    assert bool(found) == told
    assert "ALICE" not in repr(case.attrs) and "BOB" not in repr(case.attrs)

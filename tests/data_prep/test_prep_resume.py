"""Going on from a dataset that is there: what stays, what is refused before anything is written, what is removed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinfuse_prep.resume import held_splits
from clinfuse_prep.store import CaseStore
from make_sources import synthrad, write_pair

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError

Prep = Callable[..., dict[str, Any]]
OTHER = ("--ct-window", "-200", "1500")


def everything(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def visits(root: Path, visits: int) -> Path:
    """A table of two patients, the second with several pairs."""
    lines = ["patient,case,anatomy,companion"]
    for number in range(1, visits + 2):
        write_pair(root / str(number), number)
        lines.append(f"{'one' if number == 1 else 'two'},v{number},{number}/mr.nii.gz,{number}/ct.nii.gz")
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    return root / "pairs.csv"


def split_file(root: Path, **splits: str) -> Path:
    path = root / f"{'-'.join(splits.values())}.csv"
    path.write_text("patient,split\n" + "".join(f"{name},{split}\n" for name, split in splits.items()))
    return path


def test_a_split_file_that_moves_patients_of_the_dataset_is_refused(tmp_path: Path, prep: Prep) -> None:
    out = tmp_path / "d.zarr"
    prep(visits(tmp_path / "s", 1), "--out", out, "--split", split_file(tmp_path, one="train", two="train"))
    source, before = visits(tmp_path / "s", 2), everything(out, Path(f"{out}.key"))
    moved = split_file(tmp_path, one="train", two="test")
    with pytest.raises(
        ConfigError, match=r"split file contradicts the dataset.*1 patient in another"
    ) as error:
        prep(source, "--out", out, "--resume", "--split", moved)
    assert "--overwrite" in str(error.value) and "two" not in str(error.value)
    assert everything(out, Path(f"{out}.key")) == before
    same = split_file(tmp_path, one="train", two="train")
    assert prep(source, "--out", out, "--resume", "--split", same)["splits"] == {"train": 3}
    assert prep(source, "--out", out, "--overwrite", "--split", moved)["splits"] == {"train": 1, "test": 2}


def test_a_new_case_goes_where_its_patient_is(tmp_path: Path, prep: Prep) -> None:
    out = tmp_path / "d.zarr"
    prep(visits(tmp_path / "s", 1), "--out", out, "--split", split_file(tmp_path, one="train", two="val"))
    prep(visits(tmp_path / "s", 3), "--out", out, "--resume", "--split", "0,0,1")
    assert CaseStore(out).manifest().groupby("patient")["split"].nunique().max() == 1


def test_a_patient_in_two_splits_is_refused() -> None:
    held = {name: {"patient": "p", "split": split} for name, split in (("a", "train"), ("b", "test"))}
    with pytest.raises(ConfigError, match="1 patient in two"):
        held_splits(held)


def test_a_case_that_cannot_be_prepared_again_is_removed(tmp_path: Path, prep: Prep) -> None:
    """Made with other choices than the rest, it must not stay among them; with its own it comes back."""
    source, out = synthrad(tmp_path / "s", 3), tmp_path / "d.zarr"
    prep(source, "--out", out)
    assert prep(source, "--out", out, "--resume")["kept"] == 3
    image = source / "Task1" / "brain" / "1BA002" / "ct.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(b"nothing")
    result = prep(source, "--out", out, "--resume", *OTHER)
    assert (result["cases"], result["kept"], result["lost"]) == (2, 0, 1)
    store = CaseStore(out)
    rows = store.manifest().set_index("state")
    assert sorted(rows.loc["ok", "case_id"]) == store.case_ids()
    removed = [p for p in result["problems"] if "removed from the dataset" in p["problem"]]
    assert [p["case"] for p in removed] == [rows.loc["lost", "case_id"]]
    assert not (out / ".aside").exists()
    image.write_bytes(whole)
    again = prep(source, "--out", out, "--resume", *OTHER)
    assert (again["cases"], again["kept"], again["lost"]) == (3, 2, 0)


def test_a_case_is_taken_out_of_any_store(tiny_case: Case) -> None:
    store = CaseStore("memory://removal/d.zarr")
    store.write(tiny_case)
    store.remove("tiny")
    store.remove("tiny")
    assert store.case_ids() == []
    with pytest.raises(InputError, match="not in the dataset"):
        store.read("tiny")


def test_corrected_masks_are_not_prepared_away(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    prep(source, "--out", out)
    store = CaseStore(out)
    name = store.case_ids()[0]
    mask = np.roll(store.read(name).brain, 1, axis=2)
    store.replace_masks(name, {"brain": mask}, "corrected")
    before = everything(out, Path(f"{out}.key"))
    with pytest.raises(ConfigError, match=r"corrected masks in 1 case of 2 cases.*masks export"):
        prep(source, "--out", out, "--resume", *OTHER)
    assert everything(out, Path(f"{out}.key")) == before
    assert prep(source, "--out", out, "--resume")["kept"] == 2
    assert np.array_equal(store.read(name).brain, mask)


def test_an_optional_package_does_not_make_finished_cases_anew(tmp_path: Path, prep: Prep) -> None:
    """The dataset was made where brain masks could be compared."""
    source, out = synthrad(tmp_path / "s", 1), tmp_path / "d.zarr"
    prep(source, "--out", out)
    about = next((out / "cases").glob("c*/zarr.json"))
    document = json.loads(about.read_text())
    document["attributes"]["prep"]["compare"] = True
    about.write_text(json.dumps(document))
    assert prep(source, "--out", out, "--resume")["kept"] == 1


@pytest.mark.parametrize("split", ["0,0,0", "a,b,c", "file"])
def test_an_impossible_split_leaves_the_dataset_alone(split: str, tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    prep(source, "--out", out)
    before = everything(out)
    asked = split_file(tmp_path, nobody="test") if split == "file" else split
    with pytest.raises(ConfigError, match="split"):
        prep(source, "--out", out, "--overwrite", "--split", asked)
    assert everything(out) == before


def test_without_its_key_a_dataset_is_not_resumed(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 1), tmp_path / "d.zarr"
    prep(source, "--out", out)
    Path(f"{out}.key").rename(tmp_path / "safe")
    with pytest.raises(ConfigError, match="key that named the dataset's cases is missing"):
        prep(source, "--out", out, "--resume")
    assert not Path(f"{out}.key").exists()
    assert prep(source, "--out", out, "--resume", "--key", tmp_path / "safe")["kept"] == 1


def test_a_run_killed_amid_its_cases_leaves_no_manifest(tmp_path: Path, prep: Prep) -> None:
    """Else there would be one that tells of cases as they were."""
    source, out = synthrad(tmp_path / "s", 8), tmp_path / "d.zarr"
    prep(source, "--out", out)
    code = "import argparse, sys; from clinfuse_prep.verbs import PREP; p = argparse.ArgumentParser(); "
    code += "PREP.add_arguments(p); PREP.run(p.parse_args(sys.argv[1:]))"
    words = [str(source), "--out", str(out), "--resume", "--no-compare", *OTHER]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (out / "manifest.parquet").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="no manifest"):
        CaseStore(out).manifest()
    assert prep(source, "--out", out, "--resume", *OTHER)["cases"] == len(CaseStore(out).manifest()) == 8


def test_a_patient_whose_folder_got_a_namesake_is_not_taken_for_another(tmp_path: Path, prep: Prep) -> None:
    source, out = tmp_path / "s", tmp_path / "d.zarr"
    write_pair(source / "A" / "P01", 1, names=("mr", "ct"))
    prep(source, "--out", out, "--layout", "synthrad")
    write_pair(source / "B" / "P01", 2, names=("mr", "ct"))
    before = everything(out, Path(f"{out}.key"))
    with pytest.raises(ConfigError, match=r"other names in the source now.*1 patient") as error:
        prep(source, "--out", out, "--layout", "synthrad", "--resume")
    assert "P01" not in str(error.value) and everything(out, Path(f"{out}.key")) == before
    assert prep(source, "--out", out, "--layout", "synthrad", "--overwrite")["cases"] == 2


def test_a_case_whose_attributes_are_damaged_is_prepared_anew(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    prep(source, "--out", out)
    name = CaseStore(out).case_ids()[0]
    (out / "cases" / name / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="the stored case is damaged"):
        CaseStore(out).row(name)
    assert prep(source, "--out", out, "--resume")["cases"] == 2
    assert CaseStore(out).row(name)["case_id"] == name

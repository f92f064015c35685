"""What a newcomer gets wrong is said before any work, and leaves nothing behind; half pairs are named and lost."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clinfuse_prep.store import CaseStore
from clinfuse_prep.verbs import INSPECT, MASKS
from make_sources import synthrad, write_pair

from clinfuse.errors import ConfigError, InputError
from clinfuse.folders import check_writable
from clinfuse.verbs import Verb

Prep = Callable[..., dict[str, Any]]


def asked(verb: Verb, *words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(word) for word in words]))


def test_a_split_file_that_is_not_there_leaves_nothing(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    before = set(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"no file nofile\.csv"):
        prep(source, "--out", out, "--split", "nofile.csv")
    with pytest.raises(ConfigError, match="impossible"):
        prep(source, "--out", out, "--split", "0,0,0")
    (tmp_path / "s.csv").write_text("patient,split\n1BA001,train\n")
    with pytest.raises(ConfigError, match="1 of 2 patients without a split"):
        prep(source, "--out", out, "--split", tmp_path / "s.csv")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "s.csv"}


def test_urls_that_cannot_be_used_are_refused_first(tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 1)
    with pytest.raises(ConfigError, match=r"the source is read from a folder.*mount the bucket"):
        prep("s3://bucket/cohort", "--out", tmp_path / "d.zarr")
    with pytest.raises(ConfigError, match="a dataset at a URL needs --key"):
        prep(source, "--out", "s3://bucket/d.zarr")
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_an_output_that_is_a_file_is_refused_first(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 1), tmp_path / "afile"
    out.write_text("mine")
    for place in (out, out / "below"):
        with pytest.raises(ConfigError, match=r"--out cannot be used.*a file of that name"):
            prep(source, "--out", place)
    assert out.read_text() == "mine" and not (tmp_path / "afile.key").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--storage cannot be used.*cannot be written"):
        check_writable("/proc/nowhere", "--storage")
    check_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_sheet_and_masks_go_nowhere_that_cannot_be_written(
    tmp_path: Path, prep: Prep, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "d.zarr", tmp_path / "mine"
    prep(synthrad(tmp_path / "s", 1), "--out", out)
    mine.write_text("mine")
    (tmp_path / "d.zarr.inspect").write_text("mine, too")
    capsys.readouterr()
    for place in ("/proc/nowhere", str(mine)):
        with pytest.raises(ConfigError, match="--out cannot be used"):
            asked(INSPECT, out, "--out", place)
        with pytest.raises(ConfigError, match="--dir cannot be used"):
            asked(MASKS, "export", out, "--dir", place)
    with pytest.raises(ConfigError, match="--out cannot be used"):
        asked(INSPECT, out)
    assert capsys.readouterr().err == "", "before the table, which comes first"
    assert asked(INSPECT, out, "--no-pictures", "--out", "/proc/nowhere")["cases"] == 1


def test_a_missing_dataset_is_called_so(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "none.zarr")
    for read in (store.case_ids, store.manifest, lambda: store.case_ids("train"), lambda: store.read("c1")):
        with pytest.raises(InputError, match=r"no dataset at this path.*found nothing"):
            read()
    with pytest.raises(InputError, match="a folder of another kind"):
        CaseStore(tmp_path).case_ids()


@pytest.mark.parametrize("names", [("mr", "ct"), ("t1", "ct_hu")])
@pytest.mark.parametrize("left", [0, 1])
def test_a_patient_without_partner_image_is_lost_by_name(
    names: tuple[str, str], left: int, tmp_path: Path, prep: Prep
) -> None:
    source = tmp_path / "s"
    write_pair(source / "ALICE", names=names)
    write_pair(source / "BOB", names=names)
    (source / "BOB" / f"{names[1 - left]}.nii.gz").unlink()
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 1)
    problem = next(p for p in result["problems"] if p["severity"] == "error")
    assert f"the {('companion', 'anatomy')[left]} image is missing" in problem["problem"]
    assert problem["case"].startswith("c") and "BOB" not in str(result)


def test_folders_with_other_names_are_counted(tmp_path: Path, prep: Prep) -> None:
    source = tmp_path / "s"
    write_pair(source / "ALICE")
    write_pair(source / "BOB", names=("brainscan", "bonescan"))
    result = prep(source, "--out", tmp_path / "d.zarr")
    (told,) = [p for p in result["problems"] if "were not read" in p["problem"]]
    assert told["found"].startswith("1 ") and "BOB" not in str(result)

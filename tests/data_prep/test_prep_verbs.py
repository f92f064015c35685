"""The verbs as a person meets them: resume after a kill, refusal to overwrite, inspect, masks out and in, Ray."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.deface import face_mask
from clinfuse_prep.geometry import Grid
from clinfuse_prep.store import CaseStore
from clinfuse_prep.verbs import COHORT, INSPECT, MASKS, PREP
from make_sources import head, synthrad, write_nifti
from PIL import Image

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError, MissingPartError

Prep = Callable[..., dict[str, Any]]


def run(verb: Any, *words: str | Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    result: dict[str, Any] = verb.run(parser.parse_args([str(word) for word in words]))
    return result


def array_bytes(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((store / "cases").rglob("c/*/*/*"))
    }


def test_verbs_name_themselves() -> None:
    assert [verb.name for verb in (COHORT, PREP, INSPECT, MASKS)] == ["cohort", "prep", "inspect", "masks"]
    assert not any(verb.needs_ray for verb in (COHORT, PREP, INSPECT, MASKS))


def test_a_dataset_is_not_overwritten_by_accident(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    prep(source, "--out", out)
    with pytest.raises(ConfigError, match="the dataset exists"):
        prep(source, "--out", out)
    with pytest.raises(ConfigError, match="one of them"):
        prep(source, "--out", out, "--resume", "--overwrite")
    assert prep(source, "--out", out, "--overwrite")["kept"] == 0
    assert prep(source, "--out", out, "--resume")["kept"] == 2
    assert prep(source, "--out", out, "--resume", "--ct-window", "-200", "1500")["kept"] == 0


def test_resume_tries_lost_cases_again(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 3), tmp_path / "d.zarr"
    path = source / "Task1" / "brain" / "1BA002" / "ct.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    assert prep(source, "--out", out)["lost"] == 1
    path.write_bytes(whole)
    result = prep(source, "--out", out, "--resume")
    assert (result["cases"], result["kept"], result["lost"]) == (3, 2, 0)
    assert (CaseStore(out).manifest()["state"] == "ok").all()


def test_a_killed_prep_resumes_and_gives_the_same_bytes(tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 8)
    out, key = tmp_path / "d.zarr", tmp_path / "key"
    words = [str(source), "--out", str(out), "--key", str(key), "--no-compare"]
    code = "import argparse, sys; from clinfuse_prep.verbs import PREP; p = argparse.ArgumentParser(); "
    code += "PREP.add_arguments(p); PREP.run(p.parse_args(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        CaseStore(out).exists() and len(CaseStore(out).case_ids()) >= 2
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = CaseStore(out).case_ids()
    assert 2 <= len(done) <= 8
    before = {name: os.stat(out / "cases" / name / "zarr.json").st_mtime_ns for name in done}
    result = prep(*words[:-1], "--resume")
    assert (result["cases"], result["kept"], result["lost"]) == (8, len(done), 0)
    assert {name: os.stat(out / "cases" / name / "zarr.json").st_mtime_ns for name in done} == before
    prep(source, "--out", tmp_path / "whole.zarr", "--key", key)
    assert array_bytes(out) == array_bytes(tmp_path / "whole.zarr")
    for name in ("manifest.parquet", *(f"cases/{case}/zarr.json" for case in CaseStore(out).case_ids())):
        assert (out / name).read_bytes() == (tmp_path / "whole.zarr" / name).read_bytes()


def test_inspect_writes_a_sheet_and_a_self_contained_page(tmp_path: Path, prep: Prep) -> None:
    prep(synthrad(tmp_path / "s", 2), "--out", tmp_path / "d.zarr")
    result = run(INSPECT, tmp_path / "d.zarr")
    page = Path(result["result"]).read_text()
    assert result["cases"] == 2
    assert all(row["case_id"] in page for row in result["table"])
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    sheet = Image.open(result["contact_sheet"])
    assert "Research use only" in sheet.text["Description"]
    corner = np.asarray(sheet)[16:28, :10]
    assert corner.max() > 100, "the patient's right is marked"
    with pytest.raises(InputError, match="no such case"):
        run(INSPECT, tmp_path / "d.zarr", "--cases", "nobody")
    assert run(INSPECT, tmp_path / "d.zarr", "--no-pictures")["result"].endswith("d.zarr")


def test_masks_go_out_and_come_back_corrected(tmp_path: Path, prep: Prep) -> None:
    out, folder = tmp_path / "d.zarr", tmp_path / "masks"
    prep(synthrad(tmp_path / "s", 2), "--out", out)
    run(MASKS, "export", out, "--dir", folder, "--images")
    store = CaseStore(out)
    one, two = store.case_ids()
    before = store.read(one)
    image = nib.load(folder / one / "brain.nii.gz")
    assert image.header["descrip"].item() == b"clinfuse brain mask. Research use only."
    assert np.allclose(image.affine, before.affine)
    changed = np.asarray(image.dataobj).copy()
    changed[:, :14] = 0
    nib.save(
        nib.Nifti1Image(np.flip(changed, 0), image.affine @ flip_x(changed.shape[0])),
        folder / one / "brain.nii.gz",
    )
    result = run(MASKS, "import", out, "--dir", folder)
    assert (result["cases"], result["lost"]) == (1, 0)
    after = store.read(one)
    assert np.array_equal(after.brain, np.ascontiguousarray(changed.transpose(2, 1, 0)))
    assert after.attrs["provenance"]["brain"] == "corrected"
    assert np.array_equal(store.array(one, "brain_before"), before.brain)
    assert store.read(two).attrs["provenance"]["brain"].startswith("auto:")
    row = store.manifest().set_index("case_id").loc[one]
    assert row["brain_provenance"] == "corrected"
    nib.save(nib.Nifti1Image(changed * 0, image.affine), folder / two / "brain.nii.gz")
    result = run(MASKS, "import", out, "--dir", folder)
    assert result["lost"] == 1 and "empty" in result["problems"][0]["problem"]
    shutil.rmtree(folder / two)
    assert run(MASKS, "import", out, "--dir", folder)["lost"] == 0, (
        "only cases that were exported are asked for"
    )
    with pytest.raises(InputError, match="no case of the dataset"):
        run(MASKS, "import", out, "--dir", tmp_path)


def written(path: Path) -> np.ndarray:
    """A mask file as (D, H, W)."""
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def test_a_case_without_a_brain_is_not_exported_and_the_others_are(tmp_path: Path, prep: Prep) -> None:
    """Nothing says where its face is."""
    out, folder = tmp_path / "d.zarr", tmp_path / "masks"
    prep(synthrad(tmp_path / "s", 2), "--out", out)
    store = CaseStore(out)
    one, two = store.case_ids()
    store.replace_masks(one, {"brain": 0 * store.read(one).brain}, "corrected")
    result = run(MASKS, "export", out, "--dir", folder)
    assert (result["cases"], result["lost"]) == (1, 1) and result["problems"][0]["case"] == one
    assert not (folder / one).exists() and (folder / two / "bone.nii.gz").is_file()
    assert run(MASKS, "export", out, "--dir", folder, "--no-deface")["cases"] == 2


def test_exported_masks_show_no_face_and_come_back_with_it(tmp_path: Path, prep: Prep) -> None:
    """Also when the brain, which says where the face is, was corrected by an import before."""
    out, folder = tmp_path / "d.zarr", tmp_path / "masks"
    prep(synthrad(tmp_path / "s", 1), "--out", out)
    store = CaseStore(out)
    (name,) = store.case_ids()
    before = store.read(name)
    face = case_face(before)
    run(MASKS, "export", out, "--dir", folder)
    bone = written(folder / name / "bone.nii.gz")
    assert before.bone[face].any() and np.array_equal(bone, np.where(face, 0, before.bone))
    assert run(MASKS, "import", out, "--dir", folder)["cases"] == 0
    brain = before.brain.copy()
    brain[:, :14] = 0
    write_nifti(folder / name / "brain.nii.gz", brain, before.affine)
    assert run(MASKS, "import", out, "--dir", folder)["cases"] == 1
    assert not np.array_equal(case_face(store.read(name)), face)
    assert run(MASKS, "import", out, "--dir", folder)["cases"] == 0
    assert np.array_equal(store.read(name).bone, before.bone)


def test_with_the_face_exported_it_can_be_corrected(tmp_path: Path, prep: Prep) -> None:
    out, folder = tmp_path / "d.zarr", tmp_path / "masks"
    prep(synthrad(tmp_path / "s", 1), "--out", out)
    store = CaseStore(out)
    (name,) = store.case_ids()
    before = store.read(name)
    run(MASKS, "export", out, "--dir", folder)
    run(MASKS, "export", out, "--dir", folder, "--no-deface")
    bone = written(folder / name / "bone.nii.gz")
    assert np.array_equal(bone, before.bone)
    corrected = np.where(case_face(before), np.uint8(0), bone)
    write_nifti(folder / name / "bone.nii.gz", corrected, before.affine)
    assert run(MASKS, "import", out, "--dir", folder)["cases"] == 1
    assert np.array_equal(store.read(name).bone, corrected)


def test_an_import_that_was_killed_is_made_whole_by_the_next(tmp_path: Path, prep: Prep) -> None:
    """The masks of a case had been changed, the manifest not yet."""
    out, folder = tmp_path / "d.zarr", tmp_path / "masks"
    prep(synthrad(tmp_path / "s", 1), "--out", out)
    store = CaseStore(out)
    (name,) = store.case_ids()
    store.replace_masks(name, {"brain": np.roll(store.read(name).brain, 1, axis=2)}, "corrected")
    run(MASKS, "export", out, "--dir", folder)
    assert run(MASKS, "import", out, "--dir", folder)["cases"] == 0
    row = store.manifest().iloc[0]
    assert (row["brain_provenance"], row["content"]) == ("corrected", store.row(name)["content"])


def flip_x(size: int) -> np.ndarray:
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = size - 1
    return turn


def test_mask_files_win_over_automatic_ones(tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 2)
    brain = head()[2]
    brain[:4] = 0
    write_nifti(tmp_path / "m" / "1BA001" / "brain.nii.gz", brain)
    prep(source, "--out", tmp_path / "d.zarr", "--masks", tmp_path / "m")
    provenance = CaseStore(tmp_path / "d.zarr").manifest()["brain_provenance"]
    assert sorted(provenance) == ["auto:ct-intracranial", "curated"]


def test_a_split_file_is_followed(tmp_path: Path, prep: Prep) -> None:
    source, table = synthrad(tmp_path / "s", 2), tmp_path / "split.csv"
    table.write_text("patient,split\n1BA001,test\n")
    with pytest.raises(ConfigError, match="does not place every patient"):
        prep(source, "--out", tmp_path / "d.zarr", "--split", table)
    table.write_text("patient,split\n1BA001,test\n1BA002,val\n")
    assert prep(source, "--out", tmp_path / "d.zarr", "--split", table)["splits"] == {"test": 1, "val": 1}


def test_another_spacing_and_deface(tmp_path: Path, prep: Prep) -> None:
    prep(
        synthrad(tmp_path / "s", 1),
        "--out",
        tmp_path / "d.zarr",
        "--spacing",
        "5,4,2.5",
        "--deface",
        "--dtype",
        "float16",
    )
    store = CaseStore(tmp_path / "d.zarr")
    case = store.read(store.case_ids()[0])
    assert case.spacing == pytest.approx((5, 4, 2.5))
    assert case.attrs["defaced"] is True


def case_face(case: Case) -> np.ndarray:
    return face_mask(case.brain, Grid(case.shape, case.affine))


def test_a_defaced_case_has_no_facial_skeleton(tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 1)
    cases = []
    for name, words in (("whole", []), ("defaced", ["--deface"])):
        prep(source, "--out", tmp_path / name, *words)
        store = CaseStore(tmp_path / name)
        cases.append(store.read(store.case_ids()[0]))
    whole, defaced = cases
    face = case_face(whole)
    assert whole.bone[face].any()
    for roi, mask in defaced.masks.items():
        assert np.array_equal(mask, np.where(face, 0, whole.masks[roi])), roi
    assert not defaced.companion[face].any() and defaced.bone.dtype == np.uint8


@pytest.mark.parametrize(
    "words",
    [
        ["--ct-window", "5", "4"],
        ["--spacing", "1,2"],
        ["--dtype", "int8"],
        ["--brain", "x"],
        ["--split", "a,b,c"],
    ],
)
def test_wrong_use_is_a_config_error(words: list[str], tmp_path: Path, prep: Prep) -> None:
    source = synthrad(tmp_path / "s", 1)
    with pytest.raises(ConfigError):
        prep(source, "--out", tmp_path / "d.zarr", *words)


def test_a_missing_optional_package_is_named(tmp_path: Path, prep: Prep) -> None:
    from clinfuse_prep.geometry import Grid
    from clinfuse_prep.masks.totalsegmentator import segment

    volume = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(MissingPartError, match="TotalSegmentator"):
        segment(volume, Grid(volume.shape, np.eye(4)), "CT")
    result = prep(synthrad(tmp_path / "s", 1), "--out", tmp_path / "d.zarr", "--brain", "totalsegmentator")
    assert result["lost"] == 1
    assert "pip install TotalSegmentator" in result["problems"][0]["problem"]


def test_a_plan_is_made_from_one_case_and_nothing_is_written(tmp_path: Path, prep: Prep, capfd: Any) -> None:
    source, out = synthrad(tmp_path / "s", 4), tmp_path / "d.zarr"
    plan = prep(source, "--out", out, "--plan", "--workers", "2")
    assert not out.exists() and not Path(f"{out}.key").exists()
    assert plan["cases"] == 4 and plan["at_a_time"] == 2
    assert plan["minutes"] == pytest.approx(plan["seconds_a_case"] * 4 / 2 / 60)
    assert plan["memory_gb"] == pytest.approx(6 * 12 * 32 * 28 * 11 * 2 / 1e9, rel=0.05)
    prep(source, "--out", out)
    stored = sum(path.stat().st_size for path in (out / "cases").rglob("*") if path.is_file())
    assert plan["disk_gb"] == pytest.approx(stored / 1e9, rel=0.2)
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(
        r"plan: about [\d.]+ s for 4 cases \([\d.]+ s each, 2 at a time\), [\d.]+ MB on disk", said
    )


@pytest.mark.ray
def test_cases_as_ray_tasks_give_the_same_bytes_and_survive_a_bad_one(tmp_path: Path, prep: Prep) -> None:
    source, key = synthrad(tmp_path / "s", 5), tmp_path / "key"
    (source / "Task1" / "brain" / "1BA003" / "ct.nii.gz").write_bytes(b"nothing")
    prep(source, "--out", tmp_path / "here.zarr", "--key", key, "--workers", "0")
    words = ["--workers", "2", "--cpus-per-case", "0.5"]
    result = prep(source, "--out", tmp_path / "ray.zarr", "--key", key, *words)
    assert (result["cases"], result["lost"]) == (4, 1)
    assert array_bytes(tmp_path / "here.zarr") == array_bytes(tmp_path / "ray.zarr")
    import ray

    assert not ray.is_initialized()

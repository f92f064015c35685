"""The store: round trips, all or nothing, equal bytes for equal input, and standard metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case
from clinfuse.errors import InputError


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_case_comes_back_as_it_was(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    case = replace(tiny_case, aligned_companion=tiny_case.companion[::-1].copy())
    store.write(case)
    back = store.read("tiny")
    for name in ("anatomy", "companion", "aligned_companion", "brain", "bone", "lesion", "affine"):
        assert np.array_equal(getattr(back, name), getattr(case, name)), name
    assert dict(back.attrs) == dict(case.attrs)
    assert store.case_ids("train") == ["tiny"]
    assert store.case_ids("test") == []


def test_half_precision_is_close(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(tiny_case, dtype="float16")
    assert np.abs(store.read("tiny").anatomy - tiny_case.anatomy).max() < 1e-3
    assert store.open_array("tiny", "anatomy").dtype == np.float16


def test_equal_input_gives_equal_bytes(tiny_case: Case, tmp_path: Path) -> None:
    for name in ("a", "b"):
        CaseStore(tmp_path / name).write(tiny_case)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_failed_write_leaves_nothing(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    bad = replace(tiny_case, attrs={"patient": object()})
    with pytest.raises(TypeError):
        store.write(bad)
    assert store.case_ids() == []
    assert not list((tmp_path / "d.zarr" / ".aside").glob("*"))
    store.write(tiny_case)
    with pytest.raises(TypeError):
        store.write(bad)
    assert np.array_equal(store.read("tiny").anatomy, tiny_case.anatomy)


def test_a_case_can_be_replaced(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(tiny_case)
    store.write(replace(tiny_case, anatomy=tiny_case.anatomy[::-1].copy()))
    assert np.array_equal(store.read("tiny").anatomy, tiny_case.anatomy[::-1])


def test_other_places_than_the_local_disk(tiny_case: Case) -> None:
    store = CaseStore("memory://bucket/d.zarr")
    store.write(tiny_case)
    store.commit_manifest([manifest_row(tiny_case)])
    assert store.case_ids() == ["tiny"]
    assert np.array_equal(CaseStore("memory://bucket/d.zarr").read("tiny").bone, tiny_case.bone)
    assert len(store.manifest()) == 1


def test_images_carry_ome_zarr_metadata_and_few_files(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(tiny_case)
    about = json.loads((tmp_path / "d.zarr/cases/tiny/anatomy/zarr.json").read_text())
    scale = about["attributes"]["ome"]["multiscales"][0]
    assert about["attributes"]["ome"]["version"] == "0.5"
    assert [axis["name"] for axis in scale["axes"]] == ["z", "y", "x"]
    assert scale["datasets"][0]["coordinateTransformations"][0]["scale"] == pytest.approx(
        list(tiny_case.spacing)
    )
    files = [path for path in (tmp_path / "d.zarr/cases/tiny").rglob("*") if path.is_file()]
    assert len(files) <= 17


def test_a_damaged_array_is_an_input_error(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(tiny_case)
    shard = next(path for path in (tmp_path / "d.zarr/cases/tiny/anatomy/0/c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="anatomy cannot be read"):
        store.read("tiny")
    with pytest.raises(InputError, match="not in the dataset"):
        store.read("absent")


def test_manifest_rows(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.create()
    with pytest.raises(InputError, match="no manifest"):
        store.manifest()
    store.commit_manifest([manifest_row(tiny_case)])
    row = store.manifest().iloc[0]
    assert (row["size_d"], row["size_h"], row["size_w"]) == (12, 32, 28)
    assert row["brain_ml"] == pytest.approx(tiny_case.brain.sum() * 3.0 * 1.5 * 2.0 / 1000)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_tells_the_content_that_is_read_back(dtype: str, tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    chroma = np.stack([tiny_case.companion - np.float32(0.5), np.full(tiny_case.shape, -0.0, np.float32)])
    case = replace(tiny_case, aligned_companion=tiny_case.companion[::-1].copy(), chroma=chroma)
    store.write(replace(case, attrs={**case.attrs, "colour": "yes"}), dtype=dtype)
    content = store.row("tiny")["content"]
    assert manifest_row(store.read("tiny"))["content"] == content
    store.write(store.read("tiny"), dtype=dtype)
    assert store.row("tiny")["content"] == content


def test_what_changes_in_a_case_changes_its_content(tiny_case: Case) -> None:
    def turned(name: str) -> Case:
        return replace(tiny_case, **{name: np.roll(getattr(tiny_case, name), 1, axis=0)})

    shifted = replace(tiny_case, affine=tiny_case.affine + np.eye(4)[3] * [[1], [0], [0], [0]])
    others = [turned(name) for name in ("anatomy", "companion", "brain", "bone", "lesion")]
    others += [shifted, replace(tiny_case, aligned_companion=tiny_case.companion)]
    contents = {manifest_row(case)["content"] for case in (tiny_case, *others)}
    assert len(contents) == 1 + len(others)
    assert manifest_row(turned("lesion"))["lesion_ml"] == manifest_row(tiny_case)["lesion_ml"]
    assert manifest_row(replace(tiny_case, attrs={}))["content"] == manifest_row(tiny_case)["content"]


def test_corrected_masks_keep_what_was_there(tiny_case: Case, tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(
        replace(tiny_case, attrs={**tiny_case.attrs, "provenance": {"brain": "auto:x", "bone": "auto:y"}})
    )
    for turn in range(2):
        mask = np.roll(tiny_case.brain, turn + 1, axis=0)
        store.replace_masks("tiny", {"brain": mask}, "corrected")
    case = store.read("tiny")
    assert np.array_equal(case.brain, mask)
    assert np.array_equal(store.array("tiny", "brain_before"), tiny_case.brain)
    assert case.attrs["provenance"] == {"brain": "corrected", "bone": "auto:y"}
    assert case.attrs["masks_before"] == {"brain": "auto:x"}

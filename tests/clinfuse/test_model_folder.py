"""Model folders: an exact round trip, whole or not at all, and nothing read that their hashes do not cover."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import make

from clinfuse.case import Case
from clinfuse.errors import InputError, ModelFolderError
from clinfuse.method import calibration
from clinfuse.method.error_head import ErrorHead
from clinfuse.model_files import weights_hash
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets

TRAINED = (".safetensors", "config.json")


@pytest.mark.parametrize("members", [1, 2])
def test_round_trip_is_exact(tiny_case: Case, tmp_path: Path, members: int) -> None:
    pipeline = make(members=members)
    folder = pipeline.save_pretrained(tmp_path / "model")
    again = FusionPipeline.from_pretrained(folder)
    assert again.model_hash == pipeline.model_hash
    assert again.presets == pipeline.presets
    slab = tiny_case.slices(4, 7)
    np.testing.assert_array_equal(again(slab).fused, pipeline(slab).fused)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".bin")]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def test_a_version_is_told_by_all_that_changes_answers_and_its_weights_by_training_alone(
    tmp_path: Path, error_head: Callable[..., ErrorHead]
) -> None:
    pipeline = make(members=1)
    made = facts(pipeline.save_pretrained(tmp_path / "made"))
    std, error = np.random.default_rng(0).random((2, 200)) / 10
    changed = {
        "calibration": replace(pipeline, calibration=calibration.fit_calibration([std], [error], [{}])),
        "error_head": replace(pipeline, error_head=error_head(1.0)),
        "presets": replace(pipeline, presets={"balanced": load_presets()["balanced"].changed(eta=3.0)}),
        "student_steps": replace(pipeline, student_steps=4),
        "members": make(members=2),
    }
    found = {name: facts(one.save_pretrained(tmp_path / name)) for name, one in changed.items()}
    assert len({made["model_hash"], *(one["model_hash"] for one in found.values())}) == 1 + len(changed)
    assert [name for name, one in found.items() if weights_hash(one) != weights_hash(made)] == ["members"]


def test_a_folder_of_the_format_before_loads_whatever_its_card_says(tmp_path: Path) -> None:
    """It lists its card, too, and its hash is of the weights alone."""
    folder = make(members=1).save_pretrained(tmp_path / "model")
    known = facts(folder)
    trained = [known["files"][name] for name in sorted(known["files"]) if name.endswith(TRAINED)]
    own = hashlib.sha256("".join(trained).encode()).hexdigest()[:16]
    known["files"]["README.md"], known["model_hash"] = "0" * 64, own
    (folder / "metadata.json").write_text(json.dumps(known))
    (folder / "README.md").write_text("# a card of other words\n")
    assert FusionPipeline.from_pretrained(folder).model_hash == own
    assert weights_hash(known) == weights_hash(facts(make(members=1).save_pretrained(tmp_path / "again")))


def no_files(folder: Path, known: dict[str, Any]) -> None:
    weights = folder / "denoiser" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    known["files"] = {}


def no_calibration(folder: Path, known: dict[str, Any]) -> None:
    (folder / "calibration.json").unlink()
    del known["files"]["calibration.json"]


def no_calibration_entry(_folder: Path, known: dict[str, Any]) -> None:
    del known["files"]["calibration.json"]
    known["model_hash"] = hash_of(known)


def no_presets(folder: Path, known: dict[str, Any]) -> None:
    (folder / "presets.yaml").unlink()
    del known["files"]["presets.yaml"]
    known["model_hash"] = hash_of(known)


def members_outside(folder: Path, known: dict[str, Any]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    text = json.dumps({**index, "members": ["../other/denoiser"]})
    (folder / "model_index.json").write_text(text)
    known["files"]["model_index.json"] = hashlib.sha256(text.encode()).hexdigest()
    known["model_hash"] = hash_of(known)


def members_outside_listed(folder: Path, known: dict[str, Any]) -> None:
    for name in ("config.json", "model.safetensors"):
        content = (folder / ".." / "other" / "denoiser" / name).read_bytes()
        known["files"][f"../other/denoiser/{name}"] = hashlib.sha256(content).hexdigest()
    members_outside(folder, known)


def no_index_entry(_folder: Path, known: dict[str, Any]) -> None:
    del known["files"]["model_index.json"]
    known["model_hash"] = hash_of(known)


def no_list(_folder: Path, known: dict[str, Any]) -> None:
    known["files"] = None


def hash_of(known: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known["files"], sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_files, "metadata.json was changed"),
        (no_calibration, "metadata.json was changed"),
        (no_calibration_entry, "calibration.json is not among"),
        (no_presets, "presets.yaml is not among"),
        (members_outside, "other/denoiser/config.json is not among"),
        (members_outside_listed, "found a place outside"),
        (no_index_entry, "model_index.json is not among"),
        (no_list, "does not fit together"),
    ],
)
def test_nothing_is_read_that_the_folder_s_hashes_do_not_cover(
    tmp_path: Path, change: Callable[[Path, dict[str, Any]], None], message: str
) -> None:
    pipeline = make(members=1)
    pipeline.save_pretrained(tmp_path / "other")
    std, error = np.random.default_rng(0).random((2, 200)) / 10
    pipeline.calibration = calibration.fit_calibration([std], [error], [{}])
    folder = pipeline.save_pretrained(tmp_path / "model")
    known = facts(folder)
    assert FusionPipeline.from_pretrained(folder).model_hash == hash_of(known)
    change(folder, known)
    (folder / "metadata.json").write_text(json.dumps(known))
    with pytest.raises(ModelFolderError, match=message):
        FusionPipeline.from_pretrained(folder)


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(members=2).save_pretrained(tmp_path / "model")
    really = os.replace

    def failing(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError("no space left")
        really(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space"):
        make(members=1).save_pretrained(folder)
    assert len(FusionPipeline.from_pretrained(folder).members) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    folder = make(members=2).save_pretrained(tmp_path / "model")
    make(members=1).save_pretrained(folder)
    assert len(FusionPipeline.from_pretrained(folder).members) == 1
    assert not (folder / "members").exists()


def test_corrupted_or_foreign_folders_are_refused(tmp_path: Path) -> None:
    folder = make(members=1).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="no model here"):
        FusionPipeline.from_pretrained(tmp_path)
    weights = folder / "denoiser" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ModelFolderError, match="was changed"):
        FusionPipeline.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ModelFolderError, match="missing"):
        FusionPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(ModelFolderError, match="not a clinfuse model"):
        FusionPipeline.from_pretrained(folder)


def test_a_calibration_of_an_older_format_is_refused_but_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    std, error = rng.random((2, 200)) / 10
    pipeline = make(members=1)
    pipeline.calibration = calibration.fit_calibration([std], [error], [{}])
    folder = pipeline.save_pretrained(tmp_path / "model")
    assert FusionPipeline.from_pretrained(folder).calibration == pipeline.calibration
    monkeypatch.setattr(calibration, "FORMAT", "clinfuse-calibration-1")
    pipeline.save_pretrained(folder)
    monkeypatch.undo()
    with pytest.raises(InputError, match="run clinfuse calibrate again"):
        FusionPipeline.from_pretrained(folder)
    assert FusionPipeline.from_pretrained(folder, calibrated=False).calibration is None

"""Run folders: created once, resumed with the same settings only, found by name, written atomically."""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from clinfuse_platform.provenance import code_hash, data_hash, git_commit
from clinfuse_platform.runs import create_run, find_model, find_run, list_runs, put_model
from clinfuse_platform.storage import MODEL_INDEX
from clinfuse_prep.masks_verb import export_case, masks
from clinfuse_prep.store import CaseStore
from upath import UPath

import clinfuse
from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError

CONFIG = {"verb": "train", "recipe": "cpu-debug", "seed": 0, "crop": (32, 32)}


def make_model(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / MODEL_INDEX).write_text(text)
    return folder


def test_a_run_says_what_where_and_by_which_code(tmp_path: Path) -> None:
    run = create_run("first", tmp_path, CONFIG)
    assert run.read_json("config.json") == json.loads(json.dumps(CONFIG))
    environment = run.read_json("environment.json")
    assert environment["packages"]["torch"] == version("torch")
    assert "Research use only" in environment["research_use"]
    assert set(environment["git"]) == {"commit", "dirty"}
    assert run.state() == "created"


def test_same_settings_go_on_and_others_are_refused_with_both_values(tmp_path: Path) -> None:
    create_run("first", tmp_path, CONFIG)
    assert create_run("first", tmp_path, CONFIG).name == "first"
    with pytest.raises(ConfigError, match=r"seed=0.*seed=5"):
        create_run("first", tmp_path, CONFIG | {"seed": 5})
    create_run("nested", tmp_path, {"config": {"denoiser": {"levels": 1, "groups": 8}}})
    with pytest.raises(ConfigError, match=r"settings; expected config.denoiser.levels=1; found"):
        create_run("nested", tmp_path, {"config": {"denoiser": {"levels": 2, "groups": 8}}})


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "é", "a b"])
def test_unusable_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        create_run(name, tmp_path, CONFIG)


def test_unknown_run_lists_those_there_are(tmp_path: Path) -> None:
    create_run("alpha", tmp_path, CONFIG)
    create_run("beta", tmp_path, CONFIG)
    assert [run.name for run in list_runs(tmp_path)] == ["alpha", "beta"]
    assert find_run("alpha", tmp_path).path == find_run(tmp_path / "alpha", "elsewhere").path
    with pytest.raises(InputError, match="alpha, beta"):
        find_run("gamma", tmp_path)


def test_states_of_several_jobs_are_kept_apart(tmp_path: Path) -> None:
    run = create_run("first", tmp_path, CONFIG)
    run.set_state("train", "running", workers=2)
    run.set_state("train", "finished", seconds=3.5)
    run.set_state("distill-4", "running")
    state = run.read_json("state.json")
    assert run.state("train") == "finished" and state["train"]["workers"] == 2
    assert run.state("distill-4") == "running" and run.state("ensemble") == "created"
    with pytest.raises(ValueError, match="must be one of"):
        run.set_state("train", "sleeping")


def test_jobs_at_the_same_time_lose_nothing_of_each_other(tmp_path: Path) -> None:
    run, names = create_run("first", tmp_path, CONFIG), [f"member_{number}" for number in range(1, 9)]

    def job(name: str) -> None:
        for step in range(1, 6):
            run.set_state(name, "running", step=step)
            run.put_metrics(name, [{"step": step}])

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(job, names))
    assert {name: facts["step"] for name, facts in run.read_json("state.json").items()} == dict.fromkeys(
        names, 5
    )
    assert run.metrics().set_index("job")["step"].to_dict() == dict.fromkeys(names, 5)


def test_metrics_of_one_job_replace_only_its_own(tmp_path: Path) -> None:
    run = create_run("first", tmp_path, CONFIG)
    run.put_metrics("train", [{"step": 1, "loss": 2.0}])
    run.put_metrics("distill-4", [{"step": 1, "loss": 9.0}])
    run.put_metrics("train", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    table = run.metrics()
    assert table.groupby("job")["loss"].apply(list).to_dict() == {"distill-4": [9.0], "train": [2.0, 1.0]}
    assert not list(tmp_path.rglob("*.tmp"))


def test_models_are_found_by_folder_run_and_kind(tmp_path: Path) -> None:
    run = create_run("first", tmp_path, CONFIG)
    teacher = make_model(Path(str(run.path)) / "model")
    student = make_model(Path(str(run.path)) / "student")
    assert find_model("first", tmp_path) == find_model(teacher) == teacher
    assert find_model("first/student", tmp_path) == student
    with pytest.raises(InputError, match=r"first, first/student"):
        find_model("first/ensemble", tmp_path)


def test_a_model_at_a_url_is_copied_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = UPath("memory://clinfuse-test/changed")

    def write(folder: Path, weights: str) -> None:
        make_model(folder)
        (folder / "metadata.json").write_text(json.dumps({"files": {"weights": weights}}))
        (folder / "weights").write_text(weights)

    for weights in ("old", "new", "new"):
        put_model(lambda folder, weights=weights: write(folder, weights), target)
        assert (find_model(target) / "weights").read_text() == weights
    assert len(list((tmp_path / "cache").rglob("weights"))) == 2


def test_data_hash_follows_the_manifest(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.commit_manifest([{"case_id": "a"}])
    first = data_hash(store.url)
    store.commit_manifest([{"case_id": "a"}, {"case_id": "b"}])
    assert first != data_hash(store.url) and len(first) == 16
    with pytest.raises(InputError, match="no dataset at this path"):
        data_hash(tmp_path / "none")


def import_lesion(store: CaseStore, folder: Path, lesion: np.ndarray) -> None:
    """Export the case, change its lesion there, and import it."""
    export_case(replace(store.read("tiny"), lesion=lesion), folder)
    masks(argparse.Namespace(data=store.url, dir=folder, cases=None, action="import"))


def test_data_hash_follows_the_images_and_masks(tmp_path: Path, tiny_case: Case) -> None:
    """Another window; then a mask of as many voxels elsewhere, twice: manifest rows told only the first of the two."""
    store, seen = CaseStore(tmp_path / "d.zarr"), []
    for companion in (tiny_case.companion, tiny_case.companion * np.float32(0.9)):
        store.write(replace(tiny_case, companion=companion))
        store.commit_manifest([store.row("tiny")])
        seen.append(data_hash(store.url))
    import_lesion(store, tmp_path / "masks", tiny_case.lesion)
    assert data_hash(store.url) == seen[1]
    for lesion in (tiny_case.lesion[:, ::-1].copy(), tiny_case.lesion[:, :, ::-1].copy()):
        import_lesion(store, tmp_path / "masks", lesion)
        seen.append(data_hash(store.url))
    assert len(set(seen)) == 4


def test_a_dataset_made_before_there_was_content_keeps_its_hash(tmp_path: Path, tiny_case: Case) -> None:
    store = CaseStore(tmp_path / "d.zarr")
    store.write(tiny_case)
    about = tmp_path / "d.zarr" / "cases" / "tiny" / "zarr.json"
    document = json.loads(about.read_text())
    del document["attributes"]["summary"]["content"]
    about.write_text(json.dumps(document))
    store.commit_manifest([store.row("tiny")])
    first = data_hash(store.url)
    import_lesion(store, tmp_path / "masks", tiny_case.lesion)
    assert data_hash(store.url) == first and "content" not in store.manifest()
    import_lesion(store, tmp_path / "masks", tiny_case.lesion[:, ::-1].copy())
    assert data_hash(store.url) != first and store.manifest()["content"].notna().all()


def test_code_hash_follows_the_sources(tmp_path: Path) -> None:
    """In a copy of the package, before and after a line is added."""
    root = tmp_path / "clinfuse"
    shutil.copytree(
        Path(clinfuse.__file__).parent, root, ignore=shutil.ignore_patterns("released", "__pycache__")
    )
    assert code_hash(root) == code_hash(Path(clinfuse.__file__).parent) == code_hash()
    with (root / "presets.py").open("a") as file:
        file.write("\n")
    code_hash.cache_clear()
    assert code_hash(root) != code_hash()


def test_no_commit_outside_a_repository(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == {"commit": None, "dirty": None}

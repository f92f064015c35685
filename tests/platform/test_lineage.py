"""Lineage of a run: data, code, each model, what it was made from, its calibration, the sweeps and services on it."""

from __future__ import annotations

import json
from pathlib import Path

from clinfuse_platform.lineage import note_use
from clinfuse_platform.runs import create_run
from clinfuse_platform.storage import publish_folder
from clinfuse_platform.verb_table import run_verb
from upath import UPath

from clinfuse.model_files import weights_hash

CONFIG = {"verb": "train", "config": {"recipe": "cpu-debug", "seed": 0}, "data_hash": "d" * 16}


def make_model(folder: Path, model_hash: str, **facts: str) -> Path:
    """What the lineage reads of a model folder."""
    aside = folder.with_name("aside")
    aside.mkdir(parents=True)
    (aside / "model_index.json").write_text("{}")
    told = {"model_hash": model_hash, "facts": facts, "files": {"denoiser/config.json": "0" * 64}}
    (aside / "metadata.json").write_text(json.dumps(told))
    publish_folder(aside, UPath(folder))
    return folder


def test_from_the_data_to_what_is_served(tmp_path: Path) -> None:
    run = create_run("first", tmp_path, CONFIG)
    folder = Path(str(run.path))
    teacher = make_model(folder / "model", "aaaa")
    weights = weights_hash(json.loads((teacher / "metadata.json").read_text()))
    student = make_model(folder / "student", "bbbb", teacher=weights)
    (student / "calibration.json").write_text(json.dumps({"coverage": 0.9}))
    assert note_use(folder, "sweep", "sweeps/one", {"trials": 4})
    assert note_use(teacher, "sweep", "sweeps/one", {"trials": 8}), "the same sweep, gone on with"
    assert note_use(student, "serve", "http://127.0.0.1:8000", {"members": None})
    (told,) = run_verb("runs", ["show", "first", "--storage", str(tmp_path)])["runs"]
    line = told["lineage"]
    assert line["data_hash"] == "d" * 16 and set(line["git"]) == {"commit", "dirty"}
    (sweep,) = line["models"]["model"]["uses"]
    assert (sweep["use"], sweep["where"], sweep["trials"]) == ("sweep", "sweeps/one", 8)
    assert sweep["model_hash"] == line["models"]["model"]["model_hash"] == "aaaa"
    assert line["models"]["student"]["made_from"] == line["models"]["model"]["weights_hash"] == weights
    assert line["models"]["student"]["calibrated"] == 0.9 and line["models"]["model"]["calibrated"] is None
    (served,) = line["models"]["student"]["uses"]
    assert (served["use"], served["where"]) == ("serve", "http://127.0.0.1:8000")


def test_a_model_of_no_run_is_noted_nowhere(tmp_path: Path) -> None:
    model = make_model(tmp_path / "released", "cccc")
    assert not note_use(model, "serve", "http://127.0.0.1:8000", {})
    assert not note_use(tmp_path / "none", "serve", "http://127.0.0.1:8000", {})
    assert [path.name for path in tmp_path.iterdir()] == ["released"]

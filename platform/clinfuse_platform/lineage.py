"""Lineage: data hash → run → its models → calibration → the sweeps and services that used them.

Whoever uses a run's model leaves a note in the run folder, `uses/<use>-<id>.json`; the same use again replaces it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse_platform.runs import utc_now
from clinfuse_platform.storage import MODEL_INDEX, storage_path, write_atomic

if TYPE_CHECKING:
    from clinfuse_platform.runs import Run

KINDS = ("model", "student", "ensemble")
FOLDER = "uses"


def note_use(model: str | Path, use: str, where: str, facts: Mapping[str, Any]) -> bool:
    """Note in a run's folder that one of its models is used; False where the model is of no run.

    Args:
        model: the model's folder or URL; a run's own folder means its teacher.
        use: what for, e.g. "sweep" or "serve".
        where: folder or address; with `use` it names the note.
        facts: JSON-able, without anything of a patient.
    """
    folder = storage_path(model)
    folder = folder if (folder / MODEL_INDEX).exists() else folder / "model"
    if not (folder.parent / "config.json").exists() or not (folder / MODEL_INDEX).exists():
        return False
    known = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    note = {"use": use, "where": where, "model": folder.name, "model_hash": known.get("model_hash"), **facts}
    name = hashlib.sha256(where.encode()).hexdigest()[:8]
    file = folder.parent / FOLDER / f"{use}-{name}.json"
    write_atomic(file, json.dumps({**note, "noted": utc_now()}, indent=2))
    return True


def lineage(run: Run) -> dict[str, Any]:
    """From the data's hash to every model: code commit, hashes, of which weights each was made and its uses."""
    from clinfuse.model_files import weights_hash

    config, environment = run.read_json("config.json"), run.read_json("environment.json")
    uses = _uses(run)
    models = {}
    for kind in KINDS:
        facts = run.read_json(f"{kind}/metadata.json")
        if not facts:
            continue
        known, calibration = facts.get("facts", {}), run.read_json(f"{kind}/calibration.json")
        models[kind] = {
            "model_hash": facts["model_hash"],
            "weights_hash": weights_hash(facts),
            "made_from": known.get("base") or known.get("teacher"),
            "calibrated": calibration.get("coverage") if calibration else None,
            "uses": [one for one in uses if one["model"] == kind],
        }
    return {"data_hash": config.get("data_hash"), "git": environment.get("git"), "models": models}


def _uses(run: Run) -> list[dict[str, Any]]:
    folder = run.path / FOLDER
    notes = (
        [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.iterdir())]
        if folder.exists()
        else []
    )
    return sorted(notes, key=lambda note: str(note["noted"]))

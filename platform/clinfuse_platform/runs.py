"""Run folders and the registry over them: what was trained, from which data, how far, where its models are.

A run is a folder `STORAGE/NAME` (local path or any fsspec URL):

    config.json        what was asked: verb, recipe, every setting
    environment.json   versions, git commit, devices
    state.json         created | running | failed | finished, with times; of each job of the run
    metrics.parquet    a row per report: job, phase, step, metric values
    model/ student/ ensemble/   model folders, each complete or absent; members/1 …: the ensemble's further members

Promises: a JSON or Parquet file is either the old or the new one, never half of it. One writing process per run at a
time (its threads may write at once); any number of readers. A model folder appears by one rename.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from upath import UPath

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ConfigError, InputError
from clinfuse_platform.storage import MODEL_INDEX, publish_folder, storage_path, write_atomic, write_table

STATES = ("created", "running", "failed", "finished")
DEFAULT_STORAGE = "runs"
_WRITING = threading.Lock()  # around reading and replacing a file that several jobs share


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder, absolute when local.
    """

    path: UPath

    @property
    def name(self) -> str:
        """The run's name: the folder's last part."""
        return self.path.name

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's file system."""
        return self.path.protocol in ("", "file")

    def read_json(self, name: str) -> dict[str, Any]:
        """The file's content, or an empty dict where there is none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace the file in one go."""
        write_atomic(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def state(self, job: str = "train") -> str:
        """How far a job of this run is; "created" where it never ran."""
        return str(self.read_json("state.json").get(job, {}).get("state", "created"))

    def set_state(self, job: str, state: str, **facts: Any) -> None:
        """Note a job's state with the time and any JSON-able facts (seconds, steps, workers, error)."""
        if state not in STATES:
            raise ValueError(f"{state=} must be one of {STATES}")
        with _WRITING:
            states = self.read_json("state.json")
            states[job] = {**states.get(job, {}), **facts, "state": state, "updated": utc_now()}
            self.write_json("state.json", states)

    def is_finished(self, job: str, key: str, kind: str) -> bool:
        """Whether the job is over with settings of that key and its model folder is there."""
        known = self.read_json("state.json").get(job, {})
        return known.get("state") == "finished" and known.get("key") == key and self.has_model(kind)

    def metrics(self) -> pd.DataFrame:
        """Rows reported so far (columns job, phase, step, and one per metric); empty if none."""
        file = self.path / "metrics.parquet"
        return pd.read_parquet(io.BytesIO(file.read_bytes())) if file.exists() else pd.DataFrame()

    def put_metrics(self, job: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace this job's rows; those of the run's other jobs stay."""
        new = pd.DataFrame([{"job": job, **row} for row in rows])
        with _WRITING:
            old = self.metrics()
            kept = old[old["job"] != job] if "job" in old else old
            parts = [part for part in (kept, new) if len(part)]
            table = pd.concat(parts, ignore_index=True) if parts else new
            write_table(self.path / "metrics.parquet", table)

    def has_model(self, kind: str = "model") -> bool:
        """Whether a complete model folder of that kind ("model", "student", "ensemble", "members/1") is there."""
        return (self.path / kind / MODEL_INDEX).exists()


def create_run(name: str, storage: str | Path, config: Mapping[str, Any]) -> Run:
    """A new run, or the existing one of that name if it was asked for with the same settings.

    Raises:
        ConfigError: not a plain folder name, or a run of that name with other settings (both shown).
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(
            "not usable as a run's name",
            expected="up to 100 of A-Z, a-z, 0-9, '.', '-' and '_', a letter or digit first",
            found=repr(name),
        )
    run = Run(path=storage_path(storage) / name)
    asked = json.loads(json.dumps(config))
    known = run.read_json("config.json")
    if known:
        _refuse_other_settings(name, flat(known), flat(asked))
    if not known:
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_json("environment.json", environment())
        run.write_json("config.json", asked)
    return run


def _refuse_other_settings(name: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changed = sorted(key for key in asked.keys() | known.keys() if asked.get(key) != known.get(key))
    if changed:
        raise ConfigError(
            f"run {name!r} exists with other settings",
            expected=", ".join(f"{key}={known.get(key)!r}" for key in changed),
            found=", ".join(f"{key}={asked.get(key)!r}" for key in changed),
            todo="choose another --run name, or repeat the settings to go on with that run",
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def find_run(name: str | Path, storage: str | Path = DEFAULT_STORAGE) -> Run:
    """The run of that name in the storage, or the run whose folder is given.

    Raises:
        InputError: there is none; the message lists the runs there are.
    """
    for path in reversed(_meant(name, storage)):
        if (path / "config.json").exists():
            return Run(path=path)
    raise InputError(
        "no such run",
        expected=f"one of {', '.join(run.name for run in list_runs(storage)) or '(none yet)'}",
        found=repr(str(name)),
        todo="train one (clinfuse train), or name the folder it is in (--storage)",
    )


def list_runs(storage: str | Path = DEFAULT_STORAGE) -> list[Run]:
    """Every run of the storage, by name."""
    root = storage_path(storage)
    if not root.exists():
        return []
    return [Run(path=path) for path in sorted(root.iterdir()) if (path / "config.json").exists()]


def find_model(name: str | Path | UPath, storage: str | Path = DEFAULT_STORAGE) -> Path:
    """The model folder meant by a name (see `model_folder`), or a copy of it here where it is at a URL."""
    return local_copy(model_folder(name, storage))


def model_folder(name: str | Path | UPath, storage: str | Path = DEFAULT_STORAGE) -> UPath:
    """The model folder meant by a path or URL, a run's name (its teacher), or `RUN/student`, `RUN/ensemble`.

    Raises:
        InputError: none of these; the message lists the models there are.
    """
    for path in _meant(name, storage):
        for folder in (path, path / "model"):
            if (folder / MODEL_INDEX).exists():
                return folder
    known = [
        run.name if kind == "model" else f"{run.name}/{kind}"
        for run in list_runs(storage)
        for kind in ("model", "student", "ensemble")
        if run.has_model(kind)
    ]
    raise InputError(
        "no such model",
        expected=f"a model folder, or one of {', '.join(known) or '(none yet)'}",
        found=repr(str(name)),
        todo="train one (clinfuse train), or name the folder its run is in (--storage)",
    )


def _meant(name: str | Path | UPath, storage: str | Path) -> list[UPath]:
    """The path or URL of that name, and the place of that name in the storage; a URL is nothing but itself."""
    path = storage_path(name)
    return [path] if "://" in str(name) else [path, storage_path(storage) / str(name)]


def local_copy(folder: UPath) -> Path:
    """The folder itself if local, else a copy of it in the user's cache, keyed by its list of files with hashes."""
    if folder.protocol in ("", "file"):
        return Path(str(folder))
    facts = (folder / "metadata.json").read_bytes()
    key = hashlib.sha256(str(folder).encode() + facts).hexdigest()[:16]
    target = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clinfuse" / "models" / key
    if not (target / MODEL_INDEX).exists():
        aside = target.with_name(f"{key}.{uuid.uuid4().hex}")
        folder.fs.get(folder.path, str(aside), recursive=True)
        publish_folder(aside, UPath(target))
    return target


def put_model(write: Callable[[Path], object], target: UPath) -> None:
    """Have a model folder written under its final name; `write` does so in one step, at a URL into a local folder."""
    if target.protocol in ("", "file"):
        write(Path(str(target)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "model")
        publish_folder(Path(folder) / "model", target)


def utc_now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment() -> dict[str, Any]:
    """What a rerun needs to know: versions, commit, devices. No host or user name."""
    from clinfuse_platform.provenance import git_commit, package_versions

    return {
        "created": utc_now(),
        "clinfuse": __version__,
        "git": git_commit(),
        "packages": package_versions(),
        "cores": os.cpu_count(),
        "research_use": RESEARCH_USE,
    }

"""The files of a model folder, read without any network: each as it was recorded, or refused.

Two hashes tell models apart: `model_hash` whatever changes an answer (networks, error head, calibration, presets,
steps), `weights_hash` what was trained: calibrating anew changes the first and not the second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clinfuse.errors import ModelFolderError
from clinfuse.method.calibration import Calibration
from clinfuse.method.error_head import FILE as ERROR_HEAD
from clinfuse.method.error_head import ErrorHead
from clinfuse.presets import Preset, parse_presets

FORMAT = 1
INDEX, FACTS, CARD = "model_index.json", "metadata.json", "README.md"
CALIBRATION, PRESETS = "calibration.json", "presets.yaml"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model folder whose files were all found as recorded.

    Attributes:
        path: of the folder.
        index: content of model_index.json: kind, members, lesion head, steps of a student.
        facts: content of metadata.json: hashes, and facts of the training.
    """

    path: Path
    index: dict[str, Any]
    facts: dict[str, Any]

    def file(self, name: str) -> Path:
        """One of them; ModelFolderError if it is not recorded."""
        if name not in self.facts["files"]:
            raise ModelFolderError(
                f"{name} is not among the model's files",
                expected=f"its sha256 in {FACTS}",
                found="none",
                todo="copy the whole model folder again",
            )
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether there is one; a file that is there and not recorded is refused as by `file`."""
        return name in self.facts["files"] or (self.path / name).exists()

    def presets(self) -> dict[str, Preset]:
        """By name."""
        return parse_presets(self.file(PRESETS).read_text(encoding="utf-8"))

    def error_head(self) -> ErrorHead | None:
        """None if the model was never calibrated."""
        return ErrorHead.from_bytes(self.file(ERROR_HEAD).read_bytes()) if self.has(ERROR_HEAD) else None

    def calibration(self) -> Calibration | None:
        """The same."""
        return Calibration.from_dict(read_json(self.file(CALIBRATION))) if self.has(CALIBRATION) else None


def model_files(path: Path) -> ModelFiles:
    """The files of a model folder.

    Raises:
        ModelFolderError: missing, of another library or format, or a file differs from its recorded hash.
    """
    if not (path / INDEX).is_file():
        raise ModelFolderError(
            "no model here", expected=f"a folder with {INDEX}", todo="give the model folder of a run"
        )
    index = read_json(path / INDEX)
    if index.get("_class_name") != "FusionPipeline" or index.get("format") != FORMAT:
        raise ModelFolderError(
            "not a clinfuse model of this format",
            expected=f"FusionPipeline, format {FORMAT}",
            found=f"{index.get('_class_name')}, format {index.get('format')}",
        )
    facts = read_json(path / FACTS)
    try:
        recorded: dict[str, str] = facts["files"]
        same = facts["model_hash"] == model_hash(recorded)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{FACTS} does not fit together", expected="files and model_hash", found=type(error).__name__
        ) from error
    if not same:
        raise ModelFolderError(
            f"{FACTS} was changed",
            expected="the hash of the files that it lists",
            found=str(facts["model_hash"]),
            todo="copy the whole model folder again",
        )
    for name in sorted(set(recorded) - {CARD}):  # a card may be written anew
        _check(path, name, recorded[name])
    files = ModelFiles(path=path, index=index, facts=facts)
    files.file(INDEX)
    return files


def _check(path: Path, name: str, recorded: str) -> None:
    place, file = PurePosixPath(name), path / name
    inside = not place.is_absolute() and ".." not in place.parts
    if not inside or not file.is_file() or sha256(file) != recorded:
        found = "a place outside" if not inside else "another content" if file.is_file() else "no file"
        raise ModelFolderError(
            f"{name} is missing or was changed",
            expected=f"sha256 {recorded[:12]}…",
            found=found,
            todo="copy the whole model folder again",
        )


def model_hash(files: Mapping[str, str]) -> str:
    """16 hex digits of all files' hashes; in folders from before, which list the card too, of the weights alone."""
    if CARD not in files:
        return _short_hash(json.dumps(files, sort_keys=True))
    return _short_hash("".join(h for _, h in _trained(files)))


def weights_hash(facts: Mapping[str, Any]) -> str:
    """16 hex digits of what training made: networks and their configs, not what calibrating adds.

    Args:
        facts: the content of a model folder's metadata.json.
    """
    return _short_hash("".join(h for name, h in _trained(facts["files"]) if name != ERROR_HEAD))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelFolderError: no such file, or no such content.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path.name} cannot be read", found=type(error).__name__, todo="copy the model folder again"
        ) from error
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path.name} cannot be read", expected="a JSON object")
    return found


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trained(files: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(n, h) for n, h in sorted(files.items()) if n.endswith((".safetensors", "config.json"))]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Model folders: the Hugging Face layout in safetensors and JSON, written in one atomic step, checked when read.

model_index.json  denoiser/  lesion_head/  scheduler/  members/1 …  error_head/  calibration.json  presets.yaml
README.md (model card)  metadata.json (hash of every file but the card, value ranges, intended use)

Two hashes tell models apart: `model_hash` whatever changes an answer (networks, error head, calibration, presets,
steps), `weights_hash` what was trained: calibrating anew changes the first and not the second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ModelFolderError
from clinfuse.method.calibration import Calibration
from clinfuse.method.denoiser import Denoiser, DenoiserConfig
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.error_head import FILE as ERROR_HEAD
from clinfuse.method.error_head import ErrorHead
from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig
from clinfuse.model_card import model_card
from clinfuse.presets import dump_presets, parse_presets

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline

FORMAT = 1
WEIGHTS = "model.safetensors"
INDEX = "model_index.json"
CALIBRATION = "calibration.json"
CARD = "README.md"
FACTS = "metadata.json"


def save_pipeline(pipeline: FusionPipeline, path: Path) -> Path:
    """Write aside, then rename: a reader finds the old folder or the new one, never a part.

    An old one is moved away first, so that for a moment a reader may find none.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    aside.mkdir(parents=True)
    try:
        _write_parts(pipeline, aside)
        _swap(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    pipeline.model_hash = _read_json(path / FACTS)["model_hash"]
    return path


def _write_parts(pipeline: FusionPipeline, folder: Path) -> None:
    places = ["denoiser", *(f"members/{i}" for i in range(1, len(pipeline.members)))]
    for place, member in zip(places, pipeline.members, strict=True):
        _save_module(member, asdict(member.config), folder / place)
    if pipeline.lesion_head is not None:
        _save_module(pipeline.lesion_head, asdict(pipeline.lesion_head.config), folder / "lesion_head")
    _write_json(folder / "scheduler" / "config.json", asdict(pipeline.diffusion))
    if pipeline.error_head is not None:
        (folder / ERROR_HEAD).parent.mkdir()
        (folder / ERROR_HEAD).write_bytes(pipeline.error_head.to_bytes())
    if pipeline.calibration is not None:
        _write_json(folder / CALIBRATION, pipeline.calibration.to_dict())
    (folder / "presets.yaml").write_text(dump_presets(pipeline.presets), encoding="utf-8")
    (folder / CARD).write_text(model_card(pipeline), encoding="utf-8")
    index = {
        "_class_name": "FusionPipeline",
        "_library": f"clinfuse {__version__}",
        "format": FORMAT,
        "kind": pipeline.kind,
        "student_steps": pipeline.student_steps,
        "members": places,
        "lesion_head": "lesion_head" if pipeline.lesion_head is not None else None,
    }
    _write_json(folder / INDEX, index)
    files = {
        p.relative_to(folder).as_posix(): _sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p != folder / CARD
    }
    facts = {
        "model_hash": _model_hash(files),
        "files": files,
        "axes": "D inferior to superior, H posterior to anterior, W left to right (RAS+)",
        "value_range": [0.0, 1.0],
        "intended_use": RESEARCH_USE,
        "facts": pipeline.metadata,
    }
    _write_json(folder / FACTS, facts)


def _model_hash(files: Mapping[str, str]) -> str:
    """16 hex digits of all files' hashes; in folders from before, which list the card too, of the weights alone."""
    if CARD not in files:
        return _short_hash(json.dumps(files, sort_keys=True))
    return _short_hash("".join(h for _, h in _trained(files)))


def _trained(files: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(n, h) for n, h in sorted(files.items()) if n.endswith((".safetensors", "config.json"))]


def weights_hash(facts: Mapping[str, Any]) -> str:
    """16 hex digits of what training made: networks and their configs, not what calibrating adds.

    Args:
        facts: the content of a model folder's metadata.json.
    """
    return _short_hash("".join(h for name, h in _trained(facts["files"]) if name != ERROR_HEAD))


def load_pipeline(path: Path, device: str = "cpu", calibrated: bool = True) -> FusionPipeline:
    """Read a model folder; with calibrated=False without error head and calibration, which may be of an older format.

    Raises:
        ModelFolderError: missing, of another library or format, incomplete, or a file differs from its recorded hash or
            has none.
    """
    from clinfuse.pipeline import FusionPipeline

    try:
        index = _checked_index(path)
        folder, facts = _checked_files(path)
        folder.file(INDEX)
        diffusion = DiffusionConfig(**_read_json(folder.file("scheduler/config.json")))
        members = [_load_denoiser(folder, place, diffusion) for place in index["members"]]
        head = _load_head(folder, index["lesion_head"]) if index["lesion_head"] else None
        return FusionPipeline(
            members=[m.to(device) for m in members],
            lesion_head=head.to(device) if head is not None else None,
            diffusion=diffusion,
            kind=index["kind"],
            student_steps=index["student_steps"],
            presets=parse_presets(folder.file("presets.yaml").read_text(encoding="utf-8")),
            error_head=_error_head(folder) if calibrated else None,
            calibration=_calibration(folder) if calibrated else None,
            metadata=facts["facts"],
            model_hash=facts["model_hash"],
        )
    except (AttributeError, KeyError, OSError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(
            "the model folder does not fit together", found=type(error).__name__, todo="export it again"
        ) from error


@dataclass(frozen=True)
class _Folder:
    """A model folder and the names of its files, all found as recorded."""

    path: Path
    names: frozenset[str]

    def file(self, name: str) -> Path:
        """One of them; ModelFolderError if it is not recorded."""
        if name not in self.names:
            raise ModelFolderError(
                f"{name} is not among the model's files",
                expected=f"its sha256 in {FACTS}",
                found="none",
                todo="copy the whole model folder again",
            )
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether there is one; a file that is there and not recorded is refused as by `file`."""
        return name in self.names or (self.path / name).exists()


def _error_head(folder: _Folder) -> ErrorHead | None:
    return ErrorHead.from_bytes(folder.file(ERROR_HEAD).read_bytes()) if folder.has(ERROR_HEAD) else None


def _calibration(folder: _Folder) -> Calibration | None:
    return Calibration.from_dict(_read_json(folder.file(CALIBRATION))) if folder.has(CALIBRATION) else None


def _checked_index(path: Path) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        raise ModelFolderError(
            "no model here", expected="a folder with model_index.json", todo="give the model folder of a run"
        )
    index = _read_json(path / INDEX)
    if index.get("_class_name") != "FusionPipeline" or index.get("format") != FORMAT:
        raise ModelFolderError(
            "not a clinfuse model of this format",
            expected=f"FusionPipeline, format {FORMAT}",
            found=f"{index.get('_class_name')}, format {index.get('format')}",
        )
    return index


def _checked_files(path: Path) -> tuple[_Folder, dict[str, Any]]:
    """Every recorded file as it was recorded, inside the folder, and the hash of the model made of them."""
    facts = _read_json(path / FACTS)
    recorded: dict[str, str] = facts["files"]
    if facts["model_hash"] != _model_hash(recorded):
        raise ModelFolderError(
            f"{FACTS} was changed",
            expected="the hash of the files that it lists",
            found=str(facts["model_hash"]),
            todo="copy the whole model folder again",
        )
    for name in sorted(set(recorded) - {CARD}):  # a card may be written anew
        place = PurePosixPath(name)
        file = path / name
        inside = not place.is_absolute() and ".." not in place.parts
        if not inside or not file.is_file() or _sha256(file) != recorded[name]:
            found = "a place outside" if not inside else "another content" if file.is_file() else "no file"
            raise ModelFolderError(
                f"{name} is missing or was changed",
                expected=f"sha256 {recorded[name][:12]}…",
                found=found,
                todo="copy the whole model folder again",
            )
    return _Folder(path, frozenset(recorded)), facts


def _save_module(module: nn.Module, config: dict[str, Any], folder: Path) -> None:
    _write_json(folder / "config.json", config)
    save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, folder / WEIGHTS)


def _load_denoiser(folder: _Folder, place: str, diffusion: DiffusionConfig) -> Denoiser:
    config = DenoiserConfig(**_tuples(_read_json(folder.file(f"{place}/config.json"))))
    denoiser = Denoiser(config, diffusion)
    denoiser.load_state_dict(load_file(folder.file(f"{place}/{WEIGHTS}")))
    return denoiser


def _load_head(folder: _Folder, place: str) -> LesionHead:
    head = LesionHead(LesionHeadConfig(**_tuples(_read_json(folder.file(f"{place}/config.json")))))
    head.load_state_dict(load_file(folder.file(f"{place}/{WEIGHTS}")))
    return head


def _swap(aside: Path, path: Path) -> None:
    if not path.exists():
        os.replace(aside, path)
        return
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(path, old)
    try:
        os.replace(aside, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path.name} cannot be read", found=type(error).__name__, todo="copy the model folder again"
        ) from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

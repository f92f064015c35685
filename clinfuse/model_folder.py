"""Model folders: the Hugging Face layout in safetensors and JSON, written in one atomic step, checked when read.

model_index.json  denoiser/  lesion_head/  scheduler/  members/1 …  error_head/  calibration.json  presets.yaml
README.md (model card)  metadata.json (hash of every file but the card, value ranges, intended use)
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ModelFolderError
from clinfuse.method.denoiser import Denoiser, DenoiserConfig
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.error_head import FILE as ERROR_HEAD
from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig
from clinfuse.model_card import model_card
from clinfuse.model_files import (
    CALIBRATION,
    CARD,
    FACTS,
    FORMAT,
    INDEX,
    PRESETS,
    ModelFiles,
    model_files,
    model_hash,
    read_json,
    sha256,
)
from clinfuse.presets import dump_presets

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline

WEIGHTS = "model.safetensors"


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
    pipeline.model_hash = read_json(path / FACTS)["model_hash"]
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
    (folder / PRESETS).write_text(dump_presets(pipeline.presets), encoding="utf-8")
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
        p.relative_to(folder).as_posix(): sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p != folder / CARD
    }
    facts = {
        "model_hash": model_hash(files),
        "files": files,
        "axes": "D inferior to superior, H posterior to anterior, W left to right (RAS+)",
        "value_range": [0.0, 1.0],
        "intended_use": RESEARCH_USE,
        "facts": pipeline.metadata,
    }
    _write_json(folder / FACTS, facts)


def load_pipeline(path: Path, device: str = "cpu", calibrated: bool = True) -> FusionPipeline:
    """Read a model folder; with calibrated=False without error head and calibration, which may be of an older format.

    Raises:
        ModelFolderError: missing, of another library or format, incomplete, or a file differs from its recorded hash or
            has none.
    """
    from clinfuse.pipeline import FusionPipeline

    try:
        files = model_files(path)
        diffusion = DiffusionConfig(**read_json(files.file("scheduler/config.json")))
        members = [_load_denoiser(files, place, diffusion) for place in files.index["members"]]
        place = files.index["lesion_head"]
        head = _load_head(files, place) if place else None
        return FusionPipeline(
            members=[m.to(device) for m in members],
            lesion_head=head.to(device) if head is not None else None,
            diffusion=diffusion,
            kind=files.index["kind"],
            student_steps=files.index["student_steps"],
            presets=files.presets(),
            error_head=files.error_head() if calibrated else None,
            calibration=files.calibration() if calibrated else None,
            metadata=files.facts["facts"],
            model_hash=files.facts["model_hash"],
        )
    except (AttributeError, KeyError, OSError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(
            "the model folder does not fit together", found=type(error).__name__, todo="export it again"
        ) from error


def _save_module(module: nn.Module, config: dict[str, Any], folder: Path) -> None:
    _write_json(folder / "config.json", config)
    save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, folder / WEIGHTS)


def _load_denoiser(folder: ModelFiles, place: str, diffusion: DiffusionConfig) -> Denoiser:
    config = DenoiserConfig(**_tuples(read_json(folder.file(f"{place}/config.json"))))
    denoiser = Denoiser(config, diffusion)
    denoiser.load_state_dict(load_file(folder.file(f"{place}/{WEIGHTS}")))
    return denoiser


def _load_head(folder: ModelFiles, place: str) -> LesionHead:
    head = LesionHead(LesionHeadConfig(**_tuples(read_json(folder.file(f"{place}/config.json")))))
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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")

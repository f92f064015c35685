"""Training and keeping learned baselines: a folder with `baseline.json` and `model.safetensors`, nothing pickled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clinfuse import RESEARCH_USE, __version__
from clinfuse.baselines.learned.base import MULTIPLE, Learned, LearnedConfig
from clinfuse.baselines.learned.conditional import DiffIF, FusionDiff
from clinfuse.baselines.learned.conv import ConvFusion, TestTimeFusion
from clinfuse.baselines.learned.rectified import DDFM
from clinfuse.case import Case, FloatArray
from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.method.denoiser import pad_to_multiple
from clinfuse.presets import Preset
from clinfuse.training.loop import Batches, fit

KINDS: dict[str, type[Learned]] = {k.kind: k for k in (ConvFusion, TestTimeFusion, FusionDiff, DiffIF, DDFM)}
FACTS, WEIGHTS = "baseline.json", "model.safetensors"
SLICES_AT_ONCE = 4


def train_learned(
    kind: str,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    config: LearnedConfig | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    device: str = "cpu",
) -> Learned:
    """Train one learned baseline with the same loop as our own model.

    Args:
        kind: one of `KINDS`.
        batches: step → batch of 2D crops, sides multiples of 8.
        steps: optimiser steps.
        on_step: called with (step, logs).

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError("no such learned baseline", expected=f"one of {sorted(KINDS)}", found=repr(kind))
    torch.manual_seed(seed)
    module = KINDS[kind](config or LearnedConfig())
    fit(
        module,
        lambda runner, batch, generator: runner(batch, generator),
        batches,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        on_step=None if on_step is None else lambda step, logs, _: on_step(step, logs),
        device=device,
    )
    return module


def save_learned(module: Learned, folder: Path, **facts: object) -> Path:
    """Write the folder that `NAME=FOLDER` names in `clinfuse evaluate`; extra facts (data, steps) are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in module.state_dict().items()}, folder / WEIGHTS)
    parameters = sum(p.numel() for p in module.parameters())
    known = {"kind": module.kind, "config": module.config.to_dict(), "parameters": parameters}
    about = {"version": __version__, "notice": RESEARCH_USE, **facts}
    (folder / FACTS).write_text(json.dumps({**known, **about}, indent=2), encoding="utf-8")
    return folder


def load_learned(folder: Path, device: str = "cpu") -> Learned:
    """Read a folder that `save_learned` wrote.

    Raises:
        ModelFolderError: a file is missing, of another kind, or does not fit.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        values = {**facts["config"], "channels": tuple(facts["config"]["channels"])}
        module = KINDS[facts["kind"]](LearnedConfig(**values))
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFolderError(
            "the learned baseline cannot be read",
            expected=f"{FACTS} and {WEIGHTS} as written by clinfuse",
            found=type(error).__name__,
            todo="train it again",
        ) from error
    return module.to(device).eval().requires_grad_(False)


def learned_method(module: Learned) -> Callable[[Case, Preset], FloatArray]:
    """The network as a method of cases: axial slices in small batches, noise drawn from the case's own seed."""

    def method(case: Case, preset: Preset) -> FloatArray:
        device = next(module.parameters()).device
        a, c = (torch.from_numpy(x.copy())[:, None].to(device) for x in (case.anatomy, case.companion))
        fused = []
        for start in range(0, len(a), SLICES_AT_ONCE):
            padded, undo = pad_to_multiple(torch.cat([a, c], dim=1)[start : start + SLICES_AT_ONCE], MULTIPLE)
            seed = zlib.crc32(f"{case.case_id} {start}".encode())
            fused.append(module.fuse(padded[:, :1], padded[:, 1:], seed)[undo][:, 0])
        return np.asarray(torch.cat(fused).clamp(0, 1).cpu().numpy(), dtype=np.float32)

    return method


def is_learned(folder: Path) -> bool:
    """Whether the folder holds a learned baseline."""
    return (folder / FACTS).is_file()

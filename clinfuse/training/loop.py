"""The one training loop: bare torch on one process, and the same code inside every distributed worker."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinfuse.errors import ModelFolderError
from clinfuse.training.losses import Batch, LossFn

WARM_UP_STEPS = 10
GRADIENT_NORM = 1.0
Batches = Callable[[int], Batch]


@dataclass
class TrainState:
    """Where a phase stands: step done, network, optimiser; saved as safetensors and JSON, never pickled."""

    step: int
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def save(self, folder: str | Path) -> None:
        """Write the state into an existing folder."""
        folder = Path(folder)
        save_file(
            {k: v.contiguous() for k, v in self.module.state_dict().items()}, folder / "module.safetensors"
        )
        tensors, numbers = _flatten(self.optimizer.state_dict()["state"])
        save_file(tensors, folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": self.step, "numbers": numbers}))

    def load(self, folder: str | Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            ModelFolderError: a file is missing or of another model.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "state.json").read_text())
            self.module.load_state_dict(load_file(folder / "module.safetensors"))
            tensors = load_file(folder / "optimizer.safetensors")
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelFolderError(
                "the checkpoint cannot be read", found=type(error).__name__, todo="remove it and train again"
            ) from error
        packed = self.optimizer.state_dict()
        packed["state"] = _unflatten(tensors, facts["numbers"])
        self.optimizer.load_state_dict(packed)
        self.step = int(facts["step"])


def fit(
    module: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    until: int | None = None,
    start: str | Path | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    on_step: Callable[[int, dict[str, float], TrainState], None] | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, float]]:
    """Train `module` for `steps` optimiser steps.

    Args:
        module: trained in place.
        loss_fn: see clinfuse.training.losses.
        batches: step → batch; the same step gives the same batch, so that a resumed run continues its stream.
        steps: in all, those before `start` included.
        learning_rate: peak of a cosine decay after 10 warm-up steps.
        seed: of the noise drawn in the loss; give every worker its own.
        until: stop after this step, to go on later; the learning rate still follows all `steps`.
        start: folder of a saved TrainState to continue from.
        wrap: turns the module into its distributed form.
        on_step: called with (step, logs, state) after every step.

    Returns:
        One dict of logs per step done here: "step", "seconds", and the loss's own.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step.
    """
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-4)
    state = TrainState(0, module, optimizer)
    if start is not None:
        state.load(start)
    runner = wrap(module) if wrap else module
    history = []
    for step in range(state.step, steps if until is None else min(until, steps)):
        began = time.perf_counter()
        logs = _one_step(
            runner, loss_fn, _to(batches(step), device), state, _rate(step, steps, learning_rate), seed
        )
        state.step = step + 1
        history.append({"step": float(step + 1), "seconds": time.perf_counter() - began, **logs})
        if on_step is not None:
            on_step(step + 1, history[-1], state)
    module.eval()
    return history


def _one_step(
    runner: nn.Module, loss_fn: LossFn, batch: Batch, state: TrainState, rate: float, seed: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + state.step) % 2**63)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    loss, logs = loss_fn(runner, batch, generator)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is not finite at step {state.step}: lower the learning rate")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(runner.parameters(), GRADIENT_NORM)
    state.optimizer.step()
    return logs


def _rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then cosine decay to a twentieth of the peak (Loshchilov, Hutter 2017)."""
    if step < WARM_UP_STEPS:
        return peak * (step + 1) / WARM_UP_STEPS
    done = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _to(batch: Batch, device: str | torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _flatten(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors, numbers = {}, {}
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _unflatten(tensors: dict[str, Tensor], numbers: dict[str, float]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return state

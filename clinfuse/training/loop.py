"""The one training loop: bare torch on one process, and the same code inside every distributed worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from clinfuse.training.effort import Effort, prepared, split
from clinfuse.training.losses import Batch, LossFn
from clinfuse.training.state import TrainState

WARM_UP_STEPS = 10
GRADIENT_NORM = 1.0
Batches = Callable[[int], Batch]


def fit(
    module: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    effort: Effort | None = None,
    seed: int = 0,
    until: int | None = None,
    start: str | Path | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    on_step: Callable[[int, dict[str, float], TrainState], None] | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, float]]:
    """Train `module` for `steps` optimiser steps.

    Args:
        module: trained in place; ends with the averaged weights where `effort` keeps an average.
        loss_fn: see clinfuse.training.losses.
        batches: step → batch; the same step gives the same batch, so that a resumed run continues its stream.
        steps: in all, those before `start` included.
        learning_rate: peak of a cosine decay after 10 warm-up steps.
        effort: precision, accumulation, averaging and what else saves time or memory.
        seed: of the noise drawn in the loss; give every worker its own.
        until: stop after this step, to go on later; the learning rate still follows all `steps`.
        start: folder of a saved TrainState to continue from.
        wrap: turns the module into its distributed form.
        on_step: called with (step, logs, state) after every step.

    Returns:
        One dict of logs per step done here: "step", "seconds", and the loss's own.

    Raises:
        FloatingPointError: loss or gradient is not finite; the message names the step, the weights are those before.
    """
    effort = effort or Effort()
    module.to(device).train()
    history = []
    with prepared(module, effort, device):
        optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-4)
        state = TrainState(0, module, optimizer)
        if effort.average:
            state.start_average()
        if start is not None:
            state.load(start)
        runner = wrap(module) if wrap else module
        for step in range(state.step, steps if until is None else min(until, steps)):
            began = time.perf_counter()
            batch = _to(batches(step), device)
            logs = _one_step(runner, loss_fn, batch, state, rate(step, steps, learning_rate), seed, effort)
            state.step = step + 1
            history.append({"step": float(step + 1), "seconds": time.perf_counter() - began, **logs})
            if on_step is not None:
                on_step(step + 1, history[-1], state)
        if state.average is not None:
            module.load_state_dict(state.average)
    module.eval()
    return history


def _one_step(
    runner: nn.Module,
    loss_fn: LossFn,
    batch: Batch,
    state: TrainState,
    learning_rate: float,
    seed: int,
    effort: Effort,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + state.step) % 2**63)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.zero_grad(set_to_none=True)
    parts, told = split(batch, effort.accumulate), list[dict[str, float]]()
    for number, part in enumerate(parts, start=1):
        with _apart(runner) if number < len(parts) else nullcontext():
            loss, logs = loss_fn(runner, part, generator)
            _refuse_not_finite("loss", loss, state.step)
            (loss / len(parts)).backward()
        told.append(logs)
    norm = nn.utils.clip_grad_norm_(runner.parameters(), GRADIENT_NORM)
    _refuse_not_finite("gradient", norm, state.step)
    state.optimizer.step()
    state.move_average(effort.decay(state.step))
    return _means(told)


def _means(told: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each term over the parts that have it (lesion terms are absent where no lesion is)."""
    names = dict.fromkeys(name for logs in told for name in logs)
    values = {name: [logs[name] for logs in told if name in logs] for name in names}
    return {name: sum(known) / len(known) for name, known in values.items()}


def _apart(runner: nn.Module) -> AbstractContextManager[None]:
    """Gradients of a part stay on this worker; those of the last part carry all of them to the others."""
    return runner.no_sync() if isinstance(runner, nn.parallel.DistributedDataParallel) else nullcontext()


def _refuse_not_finite(what: str, value: torch.Tensor, step: int) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {what} is not finite at step {step}: lower the learning rate")


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up, then cosine decay to a twentieth of the peak.

    Reference: Loshchilov, Hutter, SGDR, ICLR 2017, Eq. 5, one period.
    """
    if step < WARM_UP_STEPS:
        return peak * (step + 1) / WARM_UP_STEPS
    done = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _to(batch: Batch, device: str | torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}

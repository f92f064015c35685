"""What a training job is made of: phases in order, each one network trained by the core's loop, and an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from clinfuse.training import Batch, Effort
    from clinfuse.training.losses import LossFn

Modules = Mapping[str, Any]  # finished networks by phase name


@dataclass(frozen=True, kw_only=True)
class Work:
    """One worker's part of a job.

    Attributes:
        job: "train", "distill", "ensemble" or "member_1" and so on.
        settings: the job's JSON-able settings, the same for all workers; key "config" is TrainConfig.to_dict().
        rank, world_size: this worker's place among the workers.
        device: torch's name of its device.
    """

    job: str
    settings: Mapping[str, Any]
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def plan(self) -> str:
        """Name of the plan: settings["plan"], else as the job."""
        return str(self.settings.get("plan", self.job))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One network's training.

    Attributes:
        name: also the name of the finished network in checkpoints, e.g. "lesion_head".
        steps: optimiser steps.
        learning_rate: peak.
        seed: of the noise in the loss; the worker's rank is added.
        build: the network before its first step.
        loss: given the networks finished before, the loss.
        batches: given the networks finished before, step → batch.
        cases: step → ids of the cases in that batch (pseudonyms), for messages.
        effort: see clinfuse.training.Effort; None for its defaults.
        validations: how often a checkpoint of this phase is judged on validation cases.
        kind: model folder of the run that appears when this phase is done, or "" for none.
        export: writes it, given the finished networks and the folder (called on rank 0 only).
    """

    name: str
    steps: int
    learning_rate: float
    seed: int
    build: Callable[[Modules], nn.Module]
    loss: Callable[[Modules], LossFn]
    batches: Callable[[Modules], Callable[[int], Batch]]
    cases: Callable[[int], list[str]]
    effort: Effort | None = None
    validations: int = 0
    kind: str = ""
    export: Callable[[Modules, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job's phases, and how the finished networks become the job's model folder (called on rank 0 only); None where
    the phases have their own."""

    phases: tuple[Phase, ...]
    export: Callable[[Modules, Path], None] | None


def stop_at(phase: Phase, work: Work) -> int | None:
    """The step of this phase at which the job is to stop for now (settings["until"] by phase), or None."""
    step = work.settings.get("until", {}).get(phase.name)
    return int(step) if step is not None and step < phase.steps else None

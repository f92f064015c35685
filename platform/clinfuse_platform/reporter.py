"""What a worker tells while it trains: checkpoints to Ray Train, progress, curves and metrics to whoever looks.

Workers report together: rank 0 measures the time of a step and tells the others after how many steps the next
report is due, so that reports (each costs about 0.2 s) lie 3 s or more apart whatever the network's size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse_platform.curves import Curves
from clinfuse_platform.phases import Phase, Work, stop_at
from clinfuse_platform.position import Position, Stretches
from clinfuse_platform.storage import write_atomic
from clinfuse_platform.telemetry import Telemetry, TimedBatches
from clinfuse_platform.validation import NOT_JUDGED, SCORE

if TYPE_CHECKING:
    from torch import nn

    from clinfuse.training import TrainState

REPORT_SECONDS = 3.0
FIRST_REPORT_STEPS = 5


def progress_file(run: UPath, job: str) -> UPath:
    """Where rank 0 tells the waiting command how far the job is."""
    return run / f"progress-{job}.json"


class Reporter:
    """Called after every step: keeps the history and, when it is time, reports with a checkpoint."""

    def __init__(
        self,
        phase: Phase,
        work: Work,
        run: UPath,
        position: Position,
        modules: dict[str, nn.Module],
        batches: TimedBatches,
    ) -> None:
        self.phase, self.work, self.run, self.position, self.modules = phase, work, run, position, modules
        self.batches, self.telemetry = batches, Telemetry(run.name, work.job, phase.name, work.rank)
        self.stretches = Stretches(phase.name, phase.steps)
        self.until = stop_at(phase, work)
        self.step = self.judged_at = position.step if position.phase == phase.name else 0
        self.curves = Curves(run, work.job, phase.name, since=self.step) if work.rank == 0 else None
        self.due = self.step + FIRST_REPORT_STEPS
        self.since, self.since_step = time.monotonic(), self.step
        self.began = self.since

    def __call__(self, step: int, logs: dict[str, float], state: TrainState) -> None:
        """See clinfuse.training.fit's `on_step`."""
        self.step = step
        row = self.stretches.add(logs, last=step in (self.phase.steps, self.until))
        if row is not None:
            self.position.history.append({**row, "elapsed": time.monotonic() - self.began})
            if self.curves is not None:
                self.curves.add(row)
        if step == self.phase.steps or (step < self.due and step != self.until):
            return
        self.position.phase, self.position.step = self.phase.name, step
        told = {"phase": self.phase.name, **logs}
        report(self.work, self.run, self.position, self.modules, state, told, judge=self._to_be_judged())
        self.due = step + self._steps_until_next(logs)

    def close(self) -> None:
        """Write out what is still held."""
        if self.curves is not None:
            self.curves.close()

    def _to_be_judged(self) -> bool:
        """Whether a validation is due: `validations` of them, spread evenly, the last at the phase's end."""
        done, before = (n * self.phase.validations // self.phase.steps for n in (self.step, self.judged_at))
        self.judged_at = self.step
        return done > before

    def _steps_until_next(self, logs: Mapping[str, float]) -> int:
        passed = max(time.monotonic() - self.since, 1e-6)
        seconds_per_step = passed / max(1, self.step - self.since_step)
        self.telemetry.tell(self.step, 1 / seconds_per_step, min(1.0, self.batches.seconds / passed), logs)
        self.since, self.since_step, self.batches.seconds = time.monotonic(), self.step, 0.0
        wanted = max(1, math.ceil(REPORT_SECONDS / max(seconds_per_step, 1e-6)))
        return wanted if self.work.world_size == 1 else _from_rank_0(wanted, self.work.device)


def _from_rank_0(value: int, device: str) -> int:
    import torch
    import torch.distributed

    tensor = torch.tensor([value], device=device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor.item())


def report(
    work: Work,
    run: UPath,
    position: Position,
    modules: Mapping[str, nn.Module],
    state: TrainState | None,
    logs: Mapping[str, Any],
    *,
    judge: bool,
) -> None:
    """Hand a checkpoint to Ray Train (rank 0; all workers take part) and tell the waiting command how far it is.

    Args:
        judge: have the checkpoint validated beside the training.
    """
    import ray.train

    checkpoint = None
    if work.rank == 0:
        checkpoint = ray.train.Checkpoint.from_directory(str(position.save(modules, state)))
        facts = {
            key: value for key, value in logs.items() if not isinstance(value, float) or math.isfinite(value)
        }
        write_atomic(progress_file(run, work.job), json.dumps(facts))
    ray.train.report(
        {**logs, SCORE: NOT_JUDGED},
        checkpoint=checkpoint,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        validation=judge and checkpoint is not None,
    )

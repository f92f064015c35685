"""What each training worker does: the job's phases in order, resumed where the last checkpoint stands.

Workers report together: rank 0 measures the time of a step and tells the others after how many steps the next
report is due, so that reports (each costs about 0.2 s) lie 3 s or more apart whatever the network's size.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse.errors import ClinfuseError, InputError
from clinfuse_platform.phases import Phase, Plan, Work
from clinfuse_platform.position import Position, Stretches, load_weights
from clinfuse_platform.runs import publish_folder, write_atomic
from clinfuse_platform.telemetry import Telemetry, TimedBatches

if TYPE_CHECKING:
    from torch import nn

    from clinfuse.training import TrainState

REPORT_SECONDS = 3.0
FIRST_REPORT_STEPS = 5
PASSING = (RuntimeError, OSError)  # torch and gloo report lost peers as RuntimeError


def failure_file(run: UPath, job: str) -> UPath:
    """Where a worker notes an error that a restart would only repeat."""
    return run / f"failure-{job}.json"


def progress_file(run: UPath, job: str) -> UPath:
    """Where rank 0 tells the waiting command how far the job is."""
    return run / f"progress-{job}.json"


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train's entry: the whole job on one worker.

    What a restart cannot mend (wrong settings or data, a loss that is not finite, a mistake in the code) is noted
    in the run folder, and restarted workers return at once instead of repeating it. Lost connections, which a
    worker sees when another dies, and storage that does not answer are left to Ray Train, which restarts.
    """
    import ray.train
    import ray.train.torch
    import torch

    run, job = UPath(settings["run"]), str(settings["job"])
    if failure_file(run, job).exists():
        return
    torch.set_num_threads(int(settings["threads"]))
    context = ray.train.get_context()
    work = Work(
        job=job,
        settings=settings,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    plan = _plan_of(work, run)
    if plan is None:
        return
    try:
        _run_phases(plan, work, run)
    except Exception as error:
        passing = isinstance(error, PASSING) and not isinstance(error, ClinfuseError)
        if not passing:
            note_failure(run, job, error)
        if passing or work.world_size > 1:  # others wait for this worker: only a restart of all frees them
            raise


def note_failure(run: UPath, job: str, error: Exception) -> None:
    """Keep the error where the waiting command finds it."""
    if isinstance(error, InputError):
        note: dict[str, Any] = error.as_dict()
    elif isinstance(error, ClinfuseError | FloatingPointError):
        note = {"problem": str(error)}
    else:
        text = "".join(traceback.format_exception(error))
        note = {"problem": f"{type(error).__name__}: {error}", "traceback": text}
    write_atomic(failure_file(run, job), json.dumps(note).encode("utf-8"))


def _plan_of(work: Work, run: UPath) -> Plan | None:
    """This worker's plan, or None on all workers if one of them could not make its own (noted)."""
    plan, failed = None, False
    try:
        from clinfuse_platform.plans import PLANS

        plan = PLANS[work.job](work)
    except Exception as error:
        note_failure(run, work.job, error)
        failed = True
    return None if _any_worker(failed, work) else plan


def _any_worker(flag: bool, work: Work) -> bool:
    if work.world_size == 1:
        return flag
    import torch
    import torch.distributed

    tensor = torch.tensor([int(flag)], device=work.device)
    torch.distributed.all_reduce(tensor)
    return bool(tensor.item())


def _run_phases(plan: Plan, work: Work, run: UPath) -> None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        position, modules = Position(), dict[str, "nn.Module"]()
        _go_on(plan, work, run, position, modules, None)
        return
    with checkpoint.as_directory() as text:
        folder = Path(text)
        position, modules = Position.load(folder), {}
        for phase in plan.phases:
            if phase.name in position.done:
                modules[phase.name] = phase.build(modules).to(work.device).eval()
                load_weights(modules[phase.name], folder, phase.name)
        _go_on(plan, work, run, position, modules, folder)


def _go_on(
    plan: Plan,
    work: Work,
    run: UPath,
    position: Position,
    modules: dict[str, nn.Module],
    folder: Path | None,
) -> None:
    for phase in plan.phases:
        if phase.name in position.done:
            continue
        resume = folder / "current" if folder and position.phase == phase.name else None
        modules[phase.name] = _train_phase(phase, work, run, position, modules, resume)
        if _until(phase, work) is not None:
            break  # the model so far; a later run of the job goes on from the checkpoint
        position.done.append(phase.name)
        position.phase, position.step = None, 0
        _report(work, run, position, modules, None, {"phase": phase.name, "step": phase.steps})
    if work.rank == 0:
        _export(plan, modules, run / str(work.settings["kind"]))


def _until(phase: Phase, work: Work) -> int | None:
    """The step of this phase at which the job is to stop for now (settings["until"] by phase), or None."""
    step = work.settings.get("until", {}).get(phase.name)
    return int(step) if step is not None and step < phase.steps else None


def _export(plan: Plan, modules: dict[str, nn.Module], target: UPath) -> None:
    if target.protocol in ("", "file"):
        plan.export(modules, Path(str(target)))
        return
    with tempfile.TemporaryDirectory() as folder:
        plan.export(modules, Path(folder) / "model")
        publish_folder(Path(folder) / "model", target)


def _train_phase(
    phase: Phase,
    work: Work,
    run: UPath,
    position: Position,
    modules: dict[str, nn.Module],
    resume: Path | None,
) -> nn.Module:
    from clinfuse.training import fit

    module = phase.build(modules)
    batches = TimedBatches(phase.batches(modules))
    reporter = Reporter(phase, work, run, position, modules, batches)
    try:
        fit(
            module,
            phase.loss(modules),
            batches,
            steps=phase.steps,
            learning_rate=phase.learning_rate,
            seed=phase.seed * 1000 + work.rank,
            until=_until(phase, work),
            start=resume,
            wrap=_distributed,
            on_step=reporter,
            device=work.device,
        )
    except FloatingPointError as error:
        step = reporter.step
        raise FloatingPointError(
            f"{phase.name}: {error}; cases in the batch: {', '.join(phase.cases(step))}; the checkpoint before it "
            "is kept"
        ) from error
    _same_everywhere(module, work)
    return module.eval()


def _same_everywhere(module: nn.Module, work: Work) -> None:
    """Give all workers rank 0's network, running statistics included, which each worker gathers from its own data.

    The phases after this one use it; a checkpoint holds rank 0's, and a resumed run must equal an undisturbed one.
    """
    if work.world_size == 1:
        return
    import torch.distributed

    for tensor in module.state_dict().values():
        torch.distributed.broadcast(tensor, src=0)


def _distributed(module: nn.Module) -> nn.Module:
    import ray.train.torch

    return ray.train.torch.prepare_model(module, parallel_strategy_kwargs={"find_unused_parameters": False})


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
        self.until = _until(phase, work)
        self.step = position.step if position.phase == phase.name else 0
        self.due = self.step + FIRST_REPORT_STEPS
        self.since, self.since_step = time.monotonic(), self.step
        self.began = self.since

    def __call__(self, step: int, logs: dict[str, float], state: TrainState) -> None:
        """See clinfuse.training.fit's `on_step`."""
        self.step = step
        row = self.stretches.add(logs, last=step in (self.phase.steps, self.until))
        if row is not None:
            self.position.history.append({**row, "elapsed": time.monotonic() - self.began})
        if step == self.phase.steps or (step < self.due and step != self.until):
            return
        self.position.phase, self.position.step = self.phase.name, step
        _report(self.work, self.run, self.position, self.modules, state, {"phase": self.phase.name, **logs})
        self.due = step + self._steps_until_next(logs)

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


def _report(
    work: Work,
    run: UPath,
    position: Position,
    modules: Mapping[str, nn.Module],
    state: TrainState | None,
    logs: Mapping[str, Any],
) -> None:
    import ray.train

    checkpoint = None
    if work.rank == 0:
        checkpoint = ray.train.Checkpoint.from_directory(str(position.save(modules, state)))
        facts = {
            key: value for key, value in logs.items() if not isinstance(value, float) or math.isfinite(value)
        }
        write_atomic(progress_file(run, work.job), json.dumps(facts).encode("utf-8"))
    ray.train.report(
        dict(logs),
        checkpoint=checkpoint,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )

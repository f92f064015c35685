"""What each training worker does: the job's phases in order, resumed where the last checkpoint stands."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse.errors import ClinfuseError, InputError
from clinfuse_platform.phases import Modules, Phase, Plan, Work, stop_at
from clinfuse_platform.position import Position, load_weights
from clinfuse_platform.reporter import Reporter, report
from clinfuse_platform.runs import put_model
from clinfuse_platform.storage import storage_path, write_atomic
from clinfuse_platform.telemetry import TimedBatches

if TYPE_CHECKING:
    from torch import nn

PASSING = (RuntimeError, OSError)  # torch and gloo report lost peers as RuntimeError


def failure_file(run: UPath, job: str) -> UPath:
    """Where a worker notes an error that a restart would only repeat."""
    return run / f"failure-{job}.json"


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train's entry: the whole job on one worker.

    What a restart cannot mend (wrong settings or data, a loss that is not finite, a mistake in the code) is noted
    in the run folder, and restarted workers return at once instead of repeating it. Lost connections, which a
    worker sees when another dies, and storage that does not answer are left to Ray Train, which restarts.
    """
    import ray.train
    import ray.train.torch
    import torch

    run, job = storage_path(settings["run"]), str(settings["job"])
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
    write_atomic(failure_file(run, job), json.dumps(note))


def _plan_of(work: Work, run: UPath) -> Plan | None:
    """This worker's plan, or None on all workers if one of them could not make its own (noted)."""
    plan, failed = None, False
    try:
        from clinfuse_platform.plans import PLANS

        plan = PLANS[work.plan](work)
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

    checkpoint, rescued = ray.train.get_checkpoint(), work.settings.get("rescued")
    if checkpoint is None and rescued:
        checkpoint = ray.train.Checkpoint.from_directory(rescued)
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
        if stop_at(phase, work) is not None:
            break  # the model so far; a later run of the job goes on from the checkpoint
        _export(phase.export, modules, work, run / phase.kind)
        position.done.append(phase.name)
        position.phase, position.step = None, 0
        report(
            work,
            run,
            position,
            modules,
            None,
            {"phase": phase.name, "step": phase.steps},
            judge=phase.validations > 0,
        )
    _export(plan.export, modules, work, run / str(work.settings["kind"]))


def _export(
    export: Callable[[Modules, Path], None] | None, modules: Modules, work: Work, target: UPath
) -> None:
    if export is not None and work.rank == 0:
        put_model(partial(export, modules), target)


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
            effort=phase.effort,
            seed=phase.seed * 1000 + work.rank,
            until=stop_at(phase, work),
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
    finally:
        reporter.close()
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

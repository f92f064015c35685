"""Starts a training job on Ray Train and stays with it: progress, failures, resuming, the run folder's state."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinfuse_prep.session import can_grow
from upath import UPath

from clinfuse.console import CONSOLE, say
from clinfuse.errors import ClinfuseError, ConfigError, InputError, describe
from clinfuse_platform.curves import check_mlflow, tell_mlflow
from clinfuse_platform.position import Position, remove_orphans, rescue
from clinfuse_platform.reporter import progress_file
from clinfuse_platform.runs import Run
from clinfuse_platform.validation import FOLDER, SCORE, best_checkpoints, validation_config, with_verdicts
from clinfuse_platform.worker import failure_file, train_worker

KEPT_CHECKPOINTS = 2
RESTARTS = 5
_TELLING = threading.Lock()  # MLflow makes its database at the first call


class TrainingError(ClinfuseError):
    """A training job stopped for a reason that a restart does not mend."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many training workers, and what each gets.

    Attributes:
        count: fixed number, or (fewest, most) for an elastic group.
        gpus: GPUs per worker; 0 trains on the CPU.
        cpus: CPUs per worker; 0 shares this machine's cores out.
    """

    count: int | tuple[int, int] = 1
    gpus: float = 0
    cpus: int = 0

    @classmethod
    def parse(cls, text: str, gpus: float, cpus: int) -> Workers:
        """From the command line: "2", or "1:4" for an elastic group.

        Raises:
            ConfigError: not of that form, or not positive.
        """
        try:
            numbers = [int(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        fine = 1 <= len(numbers) <= 2 and numbers[0] >= 1 and numbers == sorted(numbers)
        if not fine or gpus < 0 or cpus < 0:
            raise ConfigError(
                "not a number of workers", expected="N, or FEWEST:MOST, each 1 or more", found=repr(text)
            )
        return cls(count=numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]), gpus=gpus, cpus=cpus)

    @property
    def most(self) -> int:
        """Largest number of workers."""
        return self.count if isinstance(self.count, int) else self.count[1]

    @property
    def cpus_each(self) -> int:
        """CPUs that one worker reserves, and torch threads it uses."""
        return self.cpus or max(1, (os.cpu_count() or 1) // self.most)


def launch(
    job: str,
    kind: str,
    run: Run,
    settings: Mapping[str, Any],
    workers: Workers,
    *,
    mlflow: bool = False,
    shown: bool = True,
) -> UPath:
    """Do a job of a run, or go on with it, or find it done; the path of its model folder.

    Args:
        job: its name ("train", "distill", "member_1" …), and its plan's unless the settings have a "plan".
        kind: name of the model folder to appear in the run ("model", "student", "members/1" …).
        run: the run folder.
        settings: the job's own settings; "config", "data" and "data_hash" among them. The same job with other
            settings is done anew and replaces the model folder. "until" (phase name to step) stops a phase early
            and exports the model so far; the same job with a later "until", or none, goes on from there.
        workers: how many and how large.
        mlflow: tell MLflow too when it is done.
        shown: show its progress; False where somebody else does (`watched`), since there is one live line only.

    Raises:
        ClinfuseError: what a worker refused, or that the cluster lacks the resources, or that workers kept dying.
    """
    target, key = run.path / kind, settings_key(settings)
    if run.is_finished(job, key, kind):
        say(f"  {job} of run {run.name} is finished; nothing is trained again")
        return target
    if mlflow:
        check_mlflow()
    check_resources(workers)
    failure_file(run.path, job).unlink(missing_ok=True)
    started = time.monotonic()
    run.set_state(job, "running", key=key, workers=workers.count, error=None)
    try:
        with watched(run, job) if shown else nullcontext():
            whole = settings_key({name: value for name, value in settings.items() if name != "until"})
            rows = fit_on_ray(job, kind, run, settings, workers, f"checkpoints-{job}-{whole}")
    except BaseException as error:
        run.set_state(job, "failed", error=describe(error))
        raise
    run.put_metrics(job, rows)
    run.set_state(job, "finished", seconds=round(time.monotonic() - started, 1))
    if mlflow:
        tags = {
            "data_hash": settings.get("data_hash"),
            "model": run.read_json(f"{kind}/metadata.json").get("model_hash"),
        }
        with _TELLING:
            tell_mlflow(run, job, rows, tags)
    return target


def settings_key(settings: Mapping[str, Any]) -> str:
    """Eight hex digits that tell a job's settings apart from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def fit_on_ray(
    job: str, kind: str, run: Run, settings: Mapping[str, Any], workers: Workers, name: str
) -> list[dict[str, Any]]:
    """One TorchTrainer.fit; returns the loss history."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from clinfuse_platform.network import NamedNetwork
    from clinfuse_platform.trainer import LeanTrainer

    whole = {**settings, "job": job, "kind": kind, "run": str(run.path), "threads": workers.cpus_each}
    each = {"CPU": float(workers.cpus_each)} | ({"GPU": workers.gpus} if workers.gpus else {})
    experiment = run.path / name
    rescued = rescue(Path(str(experiment))) if run.is_local else None
    whole["rescued"] = str(rescued) if rescued else None
    remove_orphans(experiment)
    scaling: dict[str, Any] = {"num_workers": workers.count, "use_gpu": workers.gpus > 0}
    if sum(bool(node["Alive"]) for node in ray.nodes()) > 1:
        scaling["placement_strategy"] = "SPREAD"
    trainer_of: Any = LeanTrainer  # of Ray Train v2, which its annotations do not tell
    trainer = trainer_of(
        train_worker,
        train_loop_config=whole,
        torch_config=NamedNetwork(),
        scaling_config=ScalingConfig(**scaling, resources_per_worker=each),
        run_config=RunConfig(
            name=name,
            storage_path=str(run.path),
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(
                num_to_keep=KEPT_CHECKPOINTS, checkpoint_score_attribute=SCORE
            ),
        ),
        validation_config=validation_config(settings, experiment),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise noted_failure(run, job) or error from None
    failed = noted_failure(run, job)
    if failed is not None:
        raise failed
    remove_orphans(experiment)
    if result.checkpoint is None or not run.has_model(kind):
        raise TrainingError("training was stopped before its end; give the same command again to go on")
    run.set_state(job, "running", best=best_checkpoints(result, name))
    with result.checkpoint.as_directory() as folder:
        return with_verdicts(Position.load(Path(folder)).history, experiment / FOLDER)


def noted_failure(run: Run, job: str) -> ClinfuseError | None:
    """The error that a worker noted in the run folder, or None."""
    file = failure_file(run.path, job)
    if not file.exists():
        return None
    note = json.loads(file.read_text(encoding="utf-8"))
    where = note.pop("traceback", "")
    problem = note.pop("problem", "training failed")
    error = InputError(problem, **note) if note else TrainingError(problem)
    if where:
        error.add_note(f"On the worker:\n{where}")
    return error


def check_resources(workers: Workers) -> None:
    """Refuse at once what the cluster can never give, instead of waiting for it.

    Raises:
        ConfigError: too few CPUs or GPUs, with both numbers. A cluster that can grow is not refused.
    """
    import ray

    fewest = workers.count if isinstance(workers.count, int) else workers.count[0]
    have = ray.cluster_resources()
    needs = {"CPU": float(fewest * workers.cpus_each), "GPU": float(fewest * workers.gpus)}
    lacking = {name: need for name, need in needs.items() if need > have.get(name, 0)}
    if lacking and can_grow():
        say(f"  waiting for {', '.join(f'{need:g} {name}' for name, need in lacking.items())}")
    elif lacking:
        raise ConfigError(
            "the cluster has too little for these workers",
            expected=", ".join(f"{need:g} {name}" for name, need in lacking.items()),
            found=", ".join(f"{have.get(name, 0):g} {name}" for name in lacking),
            todo="ask for fewer --workers, or fewer --cpus-per-worker or --gpus-per-worker",
        )


@contextmanager
def watched(run: Run, *jobs: str) -> Iterator[None]:
    """Show the jobs' progress while they go on: a live line on a terminal, else one line per phase."""
    for job in jobs:
        progress_file(run.path, job).unlink(missing_ok=True)
    over = threading.Event()
    thread = threading.Thread(target=_show_progress, args=(run, jobs, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def _show_progress(run: Run, jobs: tuple[str, ...], over: threading.Event) -> None:
    phases, lines = dict[str, str](), dict[str, str]()
    with CONSOLE.status(f"  {', '.join(jobs)}: workers are starting") as status:
        while not over.wait(0.5 if run.is_local else 5.0):
            for job in jobs:
                try:
                    facts = json.loads(progress_file(run.path, job).read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    continue
                lines[job] = _progress_line(facts)
                status.update("  " + " | ".join(lines.values()))
                if facts["phase"] != phases.get(job) and not CONSOLE.is_terminal:
                    phases[job] = facts["phase"]
                    say(f"  {facts['phase']} is training")


def _progress_line(facts: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{k} {v:.3g}" for k, v in facts.items() if isinstance(v, float) and k != "step")
    return f"{facts['phase']}: step {facts['step']:g}; {numbers}"

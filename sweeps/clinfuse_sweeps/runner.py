"""Run a sweep: one Tune experiment for all presets, resident workers, the journal as memory."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
from clinfuse_platform.storage import write_table

from clinfuse.console import say
from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse_sweeps.goals import GOALS
from clinfuse_sweeps.halving import DominatedStop
from clinfuse_sweeps.plan import Plan, check_continues, load_plan
from clinfuse_sweeps.resident import ResidentWorkers
from clinfuse_sweeps.rungs import RungStop, StagedWorker
from clinfuse_sweeps.studies import JOURNAL, PresetSearch, PresetStudy, open_storage, sole_driver
from clinfuse_sweeps.trainable import EvaluatorRecipe, TrialWorker
from clinfuse_sweeps.trials import RECORD, journal_rows, trials_table, write_fronts

# Tune's own logs and experiment state are of no use here (the journal holds all), and its banner is not ours.
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}
METRICS = tuple(GOALS)


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        folder: the sweep folder.
        table: all trials, one row each.
        wall_seconds: from the start of Tune to its end, workers' start included.
        compute_seconds: sum of the trials' own time in this run.
        search_seconds: from the first result to the last.
    """

    folder: Path
    table: pd.DataFrame
    wall_seconds: float
    compute_seconds: float
    search_seconds: float


def run_sweep(
    plan: Plan,
    recipe: EvaluatorRecipe,
    folder: Path,
    *,
    resume: bool = False,
    on_trial: Callable[[dict[str, Any]], None] | None = None,
) -> SweepResult:
    """Run the plan's trials that the folder's journal does not hold yet; write trials.parquet and fronts.

    Args:
        plan: what to do.
        recipe: builds the evaluator inside each worker.
        folder: sweep folder; new, or with `resume` one that was started before.
        resume: continue: finished trials are kept and not repeated, interrupted ones are tried again.
        on_trial: called with each finished trial's record.

    Raises:
        ConfigError: the folder already holds a sweep and `resume` is not set, or it asked something else.
        ClinfuseError: another driver is at work on the folder, or no trial could be evaluated.
    """
    if (folder / JOURNAL).exists() and not resume:
        raise ConfigError(
            "the folder already holds a sweep",
            expected="a new --out",
            found=JOURNAL,
            todo="add --resume to continue it",
        )
    with sole_driver(folder):
        if (folder / "sweep.json").exists():
            check_continues(load_plan(folder), plan)
        plan.save(folder)
        storage = open_storage(folder)
        studies = {name: PresetStudy(space, plan, storage) for name, space in plan.spaces.items()}
        search = PresetSearch(studies, trials=plan.trials, slots=plan.slots)
        progress = _Progress(plan, search, on_trial)
        start = time.monotonic()
        if search.left:
            _tune(plan, recipe, folder, search, progress)
        wall = time.monotonic() - start
        table = collect(plan, studies)
        write_table(folder / "trials.parquet", table)
        write_fronts(table, folder, plan.goals)
        check_any_complete(table)
    return SweepResult(
        folder=folder,
        table=table,
        wall_seconds=wall,
        compute_seconds=progress.compute,
        search_seconds=progress.last - progress.first,
    )


def collect(plan: Plan, studies: dict[str, PresetStudy]) -> pd.DataFrame:
    """All trials of all presets from the journal."""
    rows = []
    for name, study in studies.items():
        rows += journal_rows(study.study, preset=name, seed=plan.seed, limits=plan.limits)
    return trials_table(rows, params=plan.params, metrics=METRICS, goals=plan.goals)


def check_any_complete(table: pd.DataFrame) -> None:
    """Refuse a table without one completed trial.

    Raises:
        ClinfuseError: every trial failed; the first error is shown.
    """
    if not (table["state"] == "complete").any():
        first = next((text for text in table["error"] if text), "no trial was run")
        raise ClinfuseError(f"none of {len(table)} trials was completed; the first one said: {first}")


def _tune(
    plan: Plan, recipe: EvaluatorRecipe, folder: Path, search: PresetSearch, progress: _Progress
) -> None:
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray import tune

    scheduler = _scheduler(plan, search)
    if plan.rungs > 1:
        worker = tune.with_parameters(StagedWorker, recipe=recipe, rungs=plan.rungs)
    else:
        worker = tune.with_parameters(TrialWorker, recipe=recipe, case_by_case=plan.halving)
    tuner = tune.Tuner(
        tune.with_resources(worker, {"cpu": plan.cpus, "gpu": plan.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=search.left,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,
            trial_dirname_creator=_short_name,
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}",
            storage_path=str((folder / "tune").resolve()),
            callbacks=[progress.callback()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with own_interrupt_handler():
        tuner.fit()


@contextmanager
def own_interrupt_handler() -> Iterator[None]:
    """Give the interrupt key back after the block: Ray Tune leaves a handler that would abort what ended long ago."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _scheduler(plan: Plan, search: PresetSearch) -> ResidentWorkers:
    """What stops trials early, taught what the journal holds of them."""
    if plan.rungs == 1 and not plan.halving:
        return ResidentWorkers(plan.slots)
    kind = RungStop if plan.rungs > 1 else DominatedStop
    scheduler = kind(plan.goals, slots=plan.slots)
    for name, study in search.studies.items():
        for record in study.records():
            scheduler.learn(name, record)
    return scheduler


def _short_name(trial: Any) -> str:
    return f"{trial.config['preset']}-{trial.config['number']:04d}"


class _Progress:
    """Counts finished trials, says a line now and then, and measures time."""

    def __init__(
        self, plan: Plan, search: PresetSearch, on_trial: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self.plan, self.on_trial, self.total = plan, on_trial, search.left
        self.done = self.failed = 0
        self.compute, self.start = 0.0, time.monotonic()
        self.first = self.last = self.start

    def callback(self) -> Any:
        """As a Tune callback."""
        from ray.tune import Callback

        outer = self

        class Report(Callback):
            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                outer.count(trial.config, json.loads((trial.last_result or {}).get(RECORD, "{}")))

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                outer.count(trial.config, {"state": "failed", "error": "the worker died"})

        return Report()

    def count(self, config: dict[str, Any], record: dict[str, Any]) -> None:
        """Take note of one finished trial."""
        now = time.monotonic()
        self.first = now if self.done == 0 else self.first
        self.last, self.done = now, self.done + 1
        self.compute += float(record.get("seconds", 0.0))
        self.failed += record.get("state") == "failed"
        if record.get("state") == "running":
            where = f"rung {len(record['rungs'])}" if "rungs" in record else f"{record.get('cases')} cases"
            record = {**record, "state": "stopped", "error": f"beaten after {where}"}
        if self.on_trial is not None:
            self.on_trial({**config, **record})
        if self.total <= 40 or self.done % max(self.total // 20, 1) == 0 or self.done == self.total:
            say(self._line(config, record))

    def _line(self, config: dict[str, Any], record: dict[str, Any]) -> str:
        metrics = record.get("metrics", {})
        shown = " ".join(f"{name} {metrics[name]:.3f}" for name in self.plan.objectives if name in metrics)
        state = record.get("state", "failed")
        what = shown if state == "complete" else f"{state}: {record.get('error', '')}"
        pace = (self.last - self.first) / (self.done - 1) if self.done > self.plan.slots else None
        left = "" if pace is None else f", {pace * (self.total - self.done):.0f} s left"
        lost = f" ({self.failed} failed)" if self.failed else ""
        return f"  {self.done}/{self.total}{lost} {config['preset']}: {what}{left}"

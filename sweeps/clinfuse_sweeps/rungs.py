"""Asynchronous successive halving over training steps (ASHA), for several objectives at once.

A trial trains in rungs: to a share of its steps, is measured, and goes on from its checkpoint if no trial that reached
that rung before dominates it, or if few of them were better. So the ends of a front are never stopped for being far
from its middle. Better means: on an earlier non-dominated front of the rung, and among those of one front nearer to
the ideal point after scaling each objective to the rung's range.

Reference: Li et al. 2020 (ASHA); Schmucker et al. 2021 (its multi-objective form by non-dominated sorting).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.tune.experiment import Trial

from clinfuse.errors import describe
from clinfuse_sweeps.fronts import non_dominated, usable
from clinfuse_sweeps.goals import Goal, LossArray, losses
from clinfuse_sweeps.resident import ResidentWorkers
from clinfuse_sweeps.trainable import Evaluator, Suggestion, TrialWorker, mean_metrics
from clinfuse_sweeps.trials import RECORD

REDUCTION = 3


class StagedEvaluator(Evaluator, Protocol):
    """An evaluator whose trials can be measured before they are whole."""

    def advance(self, suggestion: Suggestion, share: float) -> None:
        """Bring the trial to this share of its full cost, in (0, 1]; what was done before is not done again."""
        ...


def shares(rungs: int, reduction: int = REDUCTION) -> tuple[float, ...]:
    """Shares of the full cost at which a trial is measured: 1/9, 1/3, 1 for three rungs.

    Raises:
        ValueError: fewer than one rung, or a reduction below 2.
    """
    if rungs < 1 or reduction < 2:
        raise ValueError(f"no rungs: {rungs=}, {reduction=}")
    return tuple(reduction ** -(rungs - 1 - place) for place in range(rungs))


def ranks(table: LossArray) -> NDArray[np.int64]:
    """(points,) place of each point, 0 the best: by non-dominated front, then by distance to the scaled ideal.

    Points with a missing value come last.
    """
    count = len(table)
    front = np.full(count, count, dtype=np.int64)
    left = usable(table)
    level = 0
    while left.any():
        found = non_dominated(np.where(left[:, None], table, np.nan))
        front[found], left, level = level, left & ~found, level + 1
    known = table[usable(table)]
    distance = np.full(count, np.inf)
    if len(known):
        span = np.ptp(known, axis=0)
        scaled = (known - known.min(axis=0)) / np.where(span > 0, span, 1.0)
        distance[usable(table)] = np.linalg.norm(scaled, axis=1)
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((distance, front))] = np.arange(count)
    return place


def goes_on(mine: LossArray, before: Sequence[LossArray], reduction: int = REDUCTION) -> bool:
    """Whether no trial dominates this one at its rung, or it is among the best 1/reduction there; the first goes on.

    Args:
        mine: (goals,) its losses at the rung.
        before: those of earlier trials at the same rung.
    """
    if not np.isfinite(mine).all():
        return False
    table = np.array([*before, mine])
    return bool(non_dominated(table)[-1] or ranks(table)[-1] <= len(before) / reduction)


class StagedWorker(TrialWorker):
    """Scores one suggestion on all cases, rung by rung."""

    evaluator: StagedEvaluator

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], recipe: Callable[[], StagedEvaluator], rungs: int = 1
    ) -> None:
        """Build the evaluator; happens once per worker, since workers are reused."""
        self.shares = shares(rungs)
        super().setup(config, recipe)

    def step(self) -> dict[str, Any]:
        """Bring the trial to its next rung and measure it there; a failure is a result."""
        evaluator = self.evaluator
        start, error = time.perf_counter(), ""
        share = self.shares[len(self.rungs)]
        try:
            evaluator.advance(self.suggestion, share)
            self.scores = [self._score(case) for case in range(evaluator.cases)]
            self.rungs.append({"share": share, **mean_metrics(self.scores)})
            if share == 1:
                evaluator.finish(self.suggestion)
        except Exception as problem:
            error = describe(problem)
        self.seconds += time.perf_counter() - start
        done = bool(error) or share == 1
        return {RECORD: json.dumps(self._record(error, done) | {"rungs": self.rungs}), "done": done}


class RungStop(ResidentWorkers):
    """Tune scheduler that lets the undominated and the best third of each rung go on; each preset has its own rungs."""

    def __init__(self, goals: Sequence[Goal], *, slots: int = 1, reduction: int = REDUCTION) -> None:
        super().__init__(slots)
        self.goals, self.reduction = tuple(goals), reduction
        self.seen: dict[tuple[str, int], list[LossArray]] = {}

    def learn(self, preset: str, record: dict[str, Any]) -> None:
        """Take note of the rungs that a trial of an earlier run reached."""
        for place, metrics in enumerate(record.get("rungs", ())):
            self.seen.setdefault((preset, place), []).append(losses([metrics], self.goals)[0])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue at this rung."""
        record = json.loads(result[RECORD])
        if record["state"] == "failed":
            return str(self.CONTINUE)
        preset, place = trial.config["preset"], len(record["rungs"]) - 1
        before = self.seen.setdefault((preset, place), [])
        mine = losses([record["metrics"]], self.goals)[0]
        fine = record["state"] != "running" or goes_on(mine, before, self.reduction)
        before.append(mine)
        return str(self.CONTINUE if fine else self.STOP)


def steps_at(share: float, steps: int) -> int:
    """Training steps at a share of them all: at least 1."""
    return max(1, math.ceil(share * steps))

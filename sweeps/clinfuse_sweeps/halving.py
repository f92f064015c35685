"""Stop a trial early: once the cases it has seen show, with confidence, that a finished trial dominates it.

Trials visit the same cases in the same order, so differences are paired, case by case. Each objective is judged on
the N cases in which it has a value (those of the finished trial): its mean difference there is estimated from the n of
them that were seen; since the cases are a fixed set, the error shrinks to zero as n → N (finite population
correction). A trial stops when one finished trial is better in every objective by more than the error allows; an
objective of which too little is known stops nothing. With several rivals and several looks the error probability adds
up: the default is strict.

Reference: Cochran 1977, Sampling Techniques, chapter 2 (finite population); Karnin et al. 2013 (halving).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial

from clinfuse_sweeps.fronts import non_dominated
from clinfuse_sweeps.goals import Goal, LossArray
from clinfuse_sweeps.resident import ResidentWorkers
from clinfuse_sweeps.trials import RECORD

CONFIDENCE = 0.99
LEAST_CASES = 2


def lower_bound(seen: LossArray, rival: LossArray, *, confidence: float = CONFIDENCE) -> float:
    """How much worse than the rival one goal will be at least, as mean over the N cases in which it has a value.

    d̄ − t(confidence, n − 1) · s · √((1 − n/N) / n), with mean d̄ and standard deviation s of the n differences seen;
    d̄ itself once n = N. NaN, no bound: fewer than 2 of N differences seen or none at all, an infinite one, or
    a case in which only one of the two has a value.

    Args:
        seen: losses of the running trial on the first cases, NaN where the goal has no value.
        rival: losses of a finished trial on all cases.
        confidence: of the one-sided t interval, in (0.5, 1).
    """
    from scipy.stats import t

    exists = ~np.isnan(rival)
    here = exists[: len(seen)]
    worse = seen[here] - rival[: len(seen)][here]
    n, total = len(worse), int(exists.sum())
    if n < max(1, min(LEAST_CASES, total)) or not np.isfinite(worse).all() or not np.isnan(seen[~here]).all():
        return math.nan
    if n == total:
        return float(worse.mean())
    error = worse.std(ddof=1) * math.sqrt((1 - n / total) / n)
    return float(worse.mean() - t.ppf(confidence, n - 1) * error)


def surely_dominated(seen: LossArray, rival: LossArray, *, confidence: float = CONFIDENCE) -> bool:
    """Whether the rival will be better in every objective once all cases are seen; one without a bound forbids it.

    Args:
        seen: (n, goals) losses of the running trial on the first n cases, NaN where a goal has no value.
        rival: (N, goals) losses of a finished trial on all N cases, n ≤ N.
        confidence: of each objective's lower bound, in (0.5, 1).
    """
    if not LEAST_CASES <= len(seen) < len(rival):
        return False
    pairs = zip(seen.T, rival.T, strict=True)
    low = np.array([lower_bound(mine, other, confidence=confidence) for mine, other in pairs])
    return bool((low >= 0).all() and (low > 0).any())


def mean_losses(table: LossArray) -> LossArray:
    """(goals,) mean of each column over the cases in which the goal has a value; NaN where none has."""
    means: LossArray = np.ma.masked_array(table, np.isnan(table)).mean(axis=0).filled(math.nan)
    return means


class DominatedStop(ResidentWorkers):
    """Tune scheduler that stops surely dominated trials; each preset is judged against its own finished trials."""

    def __init__(self, goals: Sequence[Goal], *, slots: int = 1, confidence: float = CONFIDENCE) -> None:
        super().__init__(slots)
        self.goals, self.confidence = tuple(goals), confidence
        self.finished: dict[str, list[LossArray]] = {}

    def learn(self, preset: str, record: dict[str, Any]) -> None:
        """Take a finished trial as a rival; rivals that others dominate on average are dropped."""
        if record.get("state") != "complete":
            return
        rivals = [*self.finished.get(preset, []), self._losses(record)]
        means = np.array([mean_losses(rival) for rival in rivals])
        self.finished[preset] = [r for r, keep in zip(rivals, non_dominated(means), strict=True) if keep]

    def _losses(self, record: dict[str, Any]) -> LossArray:
        table = [[g.loss(score.get(g.name, math.nan)) for g in self.goals] for score in record["scores"]]
        return np.asarray(table, dtype=np.float64).reshape(len(table), len(self.goals))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop or continue after one more case."""
        record = json.loads(result[RECORD])
        if record["state"] != "running":
            return self.CONTINUE
        seen = self._losses(record)
        rivals = self.finished.get(trial.config["preset"], [])
        lost = any(surely_dominated(seen, rival, confidence=self.confidence) for rival in rivals)
        return self.STOP if lost else self.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial that saw all cases becomes a rival."""
        self.learn(trial.config["preset"], json.loads(result[RECORD]))

"""Early stopping of dominated trials: certain cases, error rate on ties, compute saved without losing hypervolume."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import Zdt1
from clinfuse_sweeps.fronts import hypervolume
from clinfuse_sweeps.goals import find_goals
from clinfuse_sweeps.halving import DominatedStop, surely_dominated
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.trainable import Suggestion

from clinfuse.presets import load_presets

GOALS = find_goals(["brain_ssim", "bone_ssim"])


def test_constant_gap_is_certain_after_two_cases_and_never_after_one() -> None:
    rival = np.random.default_rng(0).normal(size=(6, 2))
    assert surely_dominated(rival[:2] + 0.1, rival)
    assert not surely_dominated(rival[:1] + 0.1, rival)
    assert not surely_dominated(rival[:2] + np.array([0.1, -0.1]), rival)
    assert not surely_dominated(rival[:2], rival)  # a twin is not dominated
    assert surely_dominated(rival[:2] + np.array([0.1, 0.0]), rival)
    assert not surely_dominated(rival + 0.1, rival)  # all seen: nothing left to stop


def test_missing_values_never_stop_a_trial() -> None:
    rival = np.zeros((5, 2))
    seen = np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]])
    assert not surely_dominated(seen, rival)


def test_trials_that_all_cases_would_clear_are_rarely_stopped() -> None:
    rng = np.random.default_rng(1)
    stopped = cleared = 0
    for _ in range(2000):
        trial, rival = rng.normal(size=(2, 8, 2))
        if (trial.mean(axis=0) < rival.mean(axis=0)).any():
            cleared += 1
            stopped += any(surely_dominated(trial[:n], rival) for n in range(2, 8))
    assert cleared > 1000
    assert stopped / cleared < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_four_tenths_of_the_cases_are_saved_at_the_same_hypervolume(seed: int) -> None:
    space = space_around(load_presets()["balanced"])
    problem = Zdt1({"balanced": space}, cases=10, noise=0.1)
    rng = np.random.default_rng(seed)
    scheduler = DominatedStop(GOALS)
    full, kept, visited = [], [], 0
    for number in range(80):
        params = {
            axis.name: axis.at(rng.random() ** (1 if i == 0 else 3)) for i, axis in enumerate(space.axes)
        }
        suggestion = Suggestion(preset="balanced", number=number, params=params)
        scores = [problem.score(suggestion, case) for case in range(10)]
        table = np.array([[goal.loss(score[goal.name]) for goal in GOALS] for score in scores])
        full.append(table.mean(axis=0))
        rivals = scheduler.finished.get("balanced", [])
        stop = next((n for n in range(2, 10) if any(surely_dominated(table[:n], r) for r in rivals)), None)
        visited += stop or 10
        if stop is None:
            kept.append(table.mean(axis=0))
            scheduler.learn("balanced", {"state": "complete", "scores": scores})
    reference = np.max(full, axis=0)
    share = hypervolume(np.array(kept), reference) / hypervolume(np.array(full), reference)
    assert share > 0.99
    assert visited < 0.6 * 80 * 10

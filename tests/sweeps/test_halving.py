"""Early stopping of dominated trials: certain cases, error rate on ties, compute saved without losing hypervolume."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from analytic import Zdt1
from clinfuse_sweeps.fronts import hypervolume
from clinfuse_sweeps.goals import find_goals
from clinfuse_sweeps.halving import DominatedStop, lower_bound, mean_losses, surely_dominated
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.trainable import Suggestion
from clinfuse_sweeps.trials import RECORD
from scipy.stats import t

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


def _record(gap: float, state: str = "complete", cases: int = 8, lesions: bool = True) -> dict[str, Any]:
    brain = np.random.default_rng(0).uniform(0.5, 0.8, size=cases) - gap
    dice = [value if case != 1 and lesions else math.nan for case, value in enumerate(brain)]
    scores = [{"brain_ssim": b, "lesion_dice": d} for b, d in zip(brain, dice, strict=True)]
    return {"state": state, "scores": scores}


def _verdict(scheduler: DominatedStop, record: dict[str, Any]) -> str:
    trial: Any = SimpleNamespace(config={"preset": "balanced"})
    return scheduler.on_trial_result(None, trial, {RECORD: json.dumps(record)})


def test_a_case_without_the_lesion_hinders_no_stop() -> None:
    scheduler = DominatedStop(find_goals(["brain_ssim", "lesion_dice"]))
    for gap in (0.0, 0.05):
        scheduler.learn("balanced", _record(gap))
    assert len(scheduler.finished["balanced"]) == 1  # the dominated rival is dropped, the other stays
    worse = _record(0.1, "running")
    seen = [worse | {"scores": worse["scores"][:n]} for n in range(1, 8)]
    verdicts = [_verdict(scheduler, record) for record in seen]
    assert (
        verdicts == [scheduler.CONTINUE] * 2 + [scheduler.STOP] * 5
    )  # two lesions were seen after three cases
    mixed = _record(0.1, "running", cases=5)
    for score in mixed["scores"]:
        score["lesion_dice"] += 0.2
    assert _verdict(scheduler, mixed) == scheduler.CONTINUE


def test_a_goal_without_any_value_decides_nothing() -> None:
    scheduler = DominatedStop(find_goals(["brain_ssim", "lesion_dice"]))
    scheduler.learn("balanced", _record(0.0, lesions=False))
    assert _verdict(scheduler, _record(0.1, "running", cases=5, lesions=False)) == scheduler.CONTINUE
    rival = np.array([[0.0, np.nan]] * 5)
    assert not surely_dominated(rival[:4] + 1.0, rival)
    np.testing.assert_array_equal(mean_losses(rival), [0.0, np.nan])


def test_the_bound_counts_the_cases_in_which_the_goal_has_a_value() -> None:
    rival = np.array([0.0, np.nan, 0.0, 0.0, np.nan, 0.0])
    seen = np.array([1.0, np.nan, 2.0])
    error = np.std([1, 2], ddof=1) * math.sqrt((1 - 2 / 4) / 2)
    assert lower_bound(seen, rival, confidence=0.9) == pytest.approx(1.5 - t.ppf(0.9, 1) * error)
    assert lower_bound(np.array([1.0, np.nan, 2.0, 3.0, np.nan, 4.0]), rival) == 2.5  # nothing left to guess
    assert (
        lower_bound(np.array([3.0, np.nan]), np.array([1.0, np.nan, np.nan])) == 2.0
    )  # the only case with it
    assert math.isnan(lower_bound(np.array([1.0, 1.0, 2.0]), rival))  # a value that the rival lacks
    assert math.isnan(lower_bound(np.array([np.inf, np.nan, 2.0]), rival))


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

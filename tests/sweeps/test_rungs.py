"""Asynchronous halving over rungs: shares, multi-objective ranks, who goes on, and what a resumed search knows."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clinfuse_sweeps.goals import find_goals
from clinfuse_sweeps.rungs import RungStop, goes_on, ranks, shares, steps_at
from clinfuse_sweeps.train_evaluator import config_of
from clinfuse_sweeps.trials import RECORD

from clinfuse.training import recipe

GOALS = find_goals(["brain_ssim", "bone_ssim"])


def test_shares_end_with_the_whole() -> None:
    assert shares(1) == (1,)
    assert shares(3) == pytest.approx((1 / 9, 1 / 3, 1))
    assert steps_at(1 / 9, 40) == 5 and steps_at(1.0, 40) == 40 and steps_at(1 / 9, 3) == 1
    with pytest.raises(ValueError, match="rungs"):
        shares(0)


def test_ranks_go_by_front_then_by_distance_to_the_ideal() -> None:
    table = np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0], [0.5, 0.5], [np.nan, 0.0]])
    place = ranks(table)
    assert place[1] == 0  # the compromise of the first front
    assert set(place[[0, 2]]) == {1, 2}
    assert place[3] == 3 and place[4] == 4


def test_the_best_third_goes_on() -> None:
    before = [np.array([value, value]) for value in (0.2, 0.4, 0.6)]
    assert goes_on(np.array([0.9, 0.9]), [])
    assert goes_on(np.array([0.1, 0.1]), before)
    assert goes_on(np.array([0.3, 0.3]), before)
    assert not goes_on(np.array([0.5, 0.5]), before)
    assert not goes_on(np.array([np.nan, 0.0]), before)


def test_the_ends_of_a_front_are_never_stopped() -> None:
    front = [np.array([x, 1 - x]) for x in (0.4, 0.45, 0.5, 0.55, 0.6)]
    for end in ([0.0, 1.0], [1.0, 0.0], [0.1, 5.0]):
        assert goes_on(np.array(end), front)
    assert not goes_on(np.array([0.45, 1.0]), front)  # dominated, and far from the best third


def _result(value: float, rung: int, state: str = "running") -> dict[str, Any]:
    metrics = {"brain_ssim": value, "bone_ssim": value}
    return {RECORD: json.dumps({"state": state, "metrics": metrics, "rungs": [metrics] * rung})}


def test_scheduler_judges_each_preset_and_rung_by_itself_and_remembers() -> None:
    scheduler = RungStop(GOALS)
    trial: Any = SimpleNamespace(config={"preset": "balanced"})
    other: Any = SimpleNamespace(config={"preset": "stroke"})
    for _ in range(3):
        scheduler.learn("balanced", {"rungs": [{"brain_ssim": 0.8, "bone_ssim": 0.8}]})
    assert scheduler.on_trial_result(None, trial, _result(0.5, 1)) == scheduler.STOP
    assert scheduler.on_trial_result(None, trial, _result(0.9, 1)) == scheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial, _result(0.5, 2)) == scheduler.CONTINUE  # first at its rung
    assert scheduler.on_trial_result(None, other, _result(0.1, 1)) == scheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial, _result(0.1, 3, "complete")) == scheduler.CONTINUE


def test_width_multiplies_channels_in_whole_groups() -> None:
    config = recipe("cpu-debug")
    wide = config_of(config, {"width": 1.4, "learning_rate": 1e-3, "alpha": 3.0})
    groups = config.denoiser.groups
    assert wide.denoiser.channels == tuple(groups * round(1.4 * c / groups) for c in config.denoiser.channels)
    assert wide.learning_rate == 1e-3
    assert config_of(config, {}).denoiser == config.denoiser

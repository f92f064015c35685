"""Asynchronous halving over rungs: shares, multi-objective ranks, who goes on, and what a resumed search knows."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clinfuse_sweeps.goals import find_goals
from clinfuse_sweeps.rungs import RungStop, StagedWorker, goes_on, ranks, shares, steps_at
from clinfuse_sweeps.train_evaluator import config_of
from clinfuse_sweeps.trainable import Suggestion, TrialWorker
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


class _Clocked:
    """Evaluator on a clock of its own: training takes 90 s in all, a case 2 s after 1/3 of it and 1 s at the end."""

    cases = 4

    def __init__(self) -> None:
        self.now = self.share = 0.0

    def perf_counter(self) -> float:
        return self.now

    def advance(self, suggestion: Suggestion, share: float) -> None:
        self.now += 90 * (share - self.share)
        self.share = share

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        self.now += 1.0 if self.share == 1 else 2.0
        return {"brain_ssim": 0.5}

    def finish(self, suggestion: Suggestion) -> None:
        self.now += 5.0


def _worker(kind: type[TrialWorker], monkeypatch: pytest.MonkeyPatch, **options: Any) -> TrialWorker:
    evaluator = _Clocked()
    for module in ("rungs", "trainable"):
        monkeypatch.setattr(f"clinfuse_sweeps.{module}.time", evaluator)
    worker = kind.__new__(kind)
    config = {"preset": "balanced", "number": 0, "params": {}}
    worker.setup(config, lambda: evaluator, **options)
    return worker


def test_time_per_case_is_that_of_scoring_at_the_last_rung_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _worker(StagedWorker, monkeypatch, rungs=2)
    first, last = (json.loads(worker.step()[RECORD]) for _ in range(2))
    assert first["metrics"]["seconds_per_case"] == first["rungs"][0]["seconds_per_case"] == pytest.approx(2)
    assert last["metrics"]["seconds_per_case"] == pytest.approx(1)
    assert (first["seconds"], last["seconds"]) == pytest.approx((30 + 8, 90 + 8 + 4 + 5))  # all of the work
    assert last["rungs"][1]["seconds_per_case"] == pytest.approx(1)


@pytest.mark.parametrize("case_by_case", [False, True])
def test_time_per_case_leaves_training_without_rungs_out(
    case_by_case: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = _worker(TrialWorker, monkeypatch, case_by_case=case_by_case)
    for _ in range(4 if case_by_case else 1):
        record = json.loads(worker.step()[RECORD])
    assert record["state"] == "complete" and record["seconds"] == pytest.approx(90 + 4 + 5)
    assert [score["seconds_per_case"] for score in record["scores"]] == pytest.approx([1] * 4)

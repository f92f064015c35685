"""The journal as memory, without Ray: what a dead driver left behind is settled, streams go on, samplers differ."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from analytic import Zdt1
from clinfuse_sweeps.goals import Limit
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.samplers import SAME, SAMPLERS, fractions, grid_levels, in_widest_gap, make_sampler
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.studies import PresetSearch, PresetStudy, open_storage, sole_driver
from clinfuse_sweeps.trainable import Suggestion
from clinfuse_sweeps.trials import RECORD, journal_rows

from clinfuse.errors import ClinfuseError
from clinfuse.presets import load_presets

SPACE = space_around(load_presets()["balanced"])


def plan_of(**changes: Any) -> Plan:
    return Plan(**{"spaces": {"balanced": SPACE}, "trials": 8, "sampler": "tpe", **changes})


def result_of(brain: float, bone: float, state: str = "complete") -> dict[str, Any]:
    metrics = {"brain_ssim": brain, "bone_ssim": bone, "lesion_dice": math.nan}
    record = {"state": state, "error": "", "metrics": metrics, "scores": [], "cases": 1, "seconds": 1.0}
    return {RECORD: json.dumps(record)}


def drive(study: PresetStudy, count: int) -> list[dict[str, float]]:
    """Ask and tell that many trials with values that depend on α and β; what was asked."""
    asked = []
    for _ in range(count):
        params = study.suggest(str(study.asked))["params"]
        study.on_trial_complete(str(study.asked - 1), result_of(params["alpha"] / 3, params["beta"] / 3))
        asked.append(dict(params))
    return asked


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in ("gp", "auto")])
def test_an_interrupted_stream_goes_on_as_if_nothing_had_happened(sampler: str, tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = drive(PresetStudy(SPACE, plan_of(sampler=sampler), open_storage(tmp_path / "whole")), 8)
    first = PresetStudy(SPACE, plan_of(sampler=sampler), open_storage(tmp_path / "broken"))
    begun = drive(first, 5)
    lost = first.suggest("lost")["params"]  # the driver dies here
    again = PresetStudy(SPACE, plan_of(sampler=sampler), open_storage(tmp_path / "broken"))
    assert again.asked == 5
    rest = drive(again, 3)
    assert rest[0] == lost
    assert begun + rest == whole
    rows = journal_rows(again.study, preset="balanced", seed=0)
    assert [row["state"] for row in rows] == [*["complete"] * 5, "interrupted", *["complete"] * 3]


def test_the_process_never_asks_for_a_point_twice(tmp_path: Path) -> None:
    """ZDT1 from a seed with which Optuna's own process asks three times for the front's steep end in 36 trials."""
    space = space_around(load_presets()["balanced"], dict.fromkeys(("kappa", "jitter_mm", "eta_u")))
    problem, points = Zdt1({"balanced": space}), []
    plan = Plan(spaces={"balanced": space}, trials=36, sampler="gp", seed=1)
    study = PresetStudy(space, plan, open_storage(tmp_path))
    for number in range(plan.trials):
        params = study.suggest(str(number))["params"]
        metrics = problem.score(Suggestion(preset="balanced", number=number, params=params), 0)
        study.on_trial_complete(str(number), result_of(metrics["brain_ssim"], metrics["bone_ssim"]))
        points.append(fractions(params, space.distributions()))
    assert min(np.abs(a - b).max() for a, b in combinations(points, 2)) > SAME / 2


def test_the_widest_gap_of_a_front_is_filled(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    space = {
        "x": optuna.distributions.FloatDistribution(0, 10),
        "y": optuna.distributions.FloatDistribution(1, 100, log=True),
    }
    rng = np.random.default_rng(0)
    assert len(in_widest_gap(study, space, rng)) == 2  # no front yet: anywhere
    for x in (0.0, 1.0, 2.0, 8.0, 9.0, 10.0):
        point = {"x": x, "y": 10.0}
        study.add_trial(optuna.create_trial(params=point, distributions=space, values=[x, 10 - x]))
    study.add_trial(
        optuna.create_trial(params={"x": 5.0, "y": 1.0}, distributions=space, values=[9, 9])
    )  # dominated
    for _ in range(5):
        x, y = in_widest_gap(study, space, rng)
        assert 0.2 < x < 0.8 and y == pytest.approx(0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_obeys_ranges_with_three_objectives_and_a_constraint(
    sampler: str, tmp_path: Path
) -> None:
    limits = (Limit(metric="brain_ssim", sense=">=", bound=0.4),)
    objectives = ("brain_ssim", "bone_ssim", "seam")
    plan = plan_of(sampler=sampler, trials=14, objectives=objectives, limits=limits)
    study = PresetStudy(SPACE, plan, open_storage(tmp_path))
    for number in range(14):
        params = study.suggest(str(number))["params"]
        assert all(axis.low <= params[axis.name] <= axis.high for axis in SPACE.axes)
        result = result_of(params["alpha"] / 3, params["beta"] / 3)
        record = json.loads(result[RECORD])
        record["metrics"]["seam"] = params["eta"]
        study.on_trial_complete(str(number), {RECORD: json.dumps(record)})
    assert len(study.study.trials) == 14


def test_a_grid_visits_different_points_on_even_levels(tmp_path: Path) -> None:
    assert grid_levels(3, 10) == [3, 2, 2]
    assert grid_levels(2, 1) == [1, 1]
    starts = len(SPACE.starts())
    asked = drive(PresetStudy(SPACE, plan_of(sampler="grid", trials=20), open_storage(tmp_path)), 20)[starts:]
    assert len({tuple(point.values()) for point in asked}) == 16
    levels = grid_levels(len(SPACE.axes), 16)
    assert sorted(levels, reverse=True) == levels
    for axis, count in zip(SPACE.axes, levels, strict=True):
        middles = {round(axis.fraction(point[axis.name]), 6) for point in asked}
        assert middles == {round((i + 0.5) / count, 6) for i in range(count)}
    assert type(make_sampler("auto", 0, trials=60, starts=4)).__name__ == "NewPointsGP"
    assert type(make_sampler("auto", 0, trials=500, starts=4)).__name__ == "TPESampler"


def test_a_trial_whose_facts_were_written_is_not_repeated(tmp_path: Path) -> None:
    study = PresetStudy(SPACE, plan_of(), open_storage(tmp_path))
    for key, state in (("a", "complete"), ("b", "failed")):
        study.suggest(key)
        facts = json.loads(result_of(0.7, 0.6, state)[RECORD])
        study._ot_trials[key].set_user_attr(RECORD, facts)  # killed between this and tell
    again = PresetStudy(SPACE, plan_of(), open_storage(tmp_path))
    assert again.asked == 2
    told, failed = again.study.trials[:2]
    assert (told.state.name, told.values) == ("COMPLETE", [0.7, 0.6])
    assert failed.state.name == "FAIL"


def test_missing_objectives_fail_and_limits_reach_optuna(tmp_path: Path) -> None:
    limits = (
        Limit(metric="bone_ssim", sense=">=", bound=0.5),
        Limit(metric="lesion_dice", sense=">=", bound=0.1),
    )
    study = PresetStudy(SPACE, plan_of(limits=limits), open_storage(tmp_path))
    for key, result in (("a", result_of(0.9, 0.4)), ("b", result_of(math.nan, 0.4)), ("c", None)):
        study.suggest(key)
        study.on_trial_complete(key, result, error=result is None)
    kept, missing, died = study.study.trials[:3]
    assert kept.constraints == pytest.approx({"bone_ssim>=0.5": 0.1, "lesion_dice>=0.1": 1.0})
    rows = journal_rows(study.study, preset="balanced", seed=0, limits=limits)
    assert [row["state"] for row in rows] == ["complete", "failed", "failed"]
    assert [row["feasible"] for row in rows] == [False, False, False]
    assert "brain_ssim" in rows[1]["error"] and rows[2]["error"] == "the worker died"
    assert missing.state.name == died.state.name == "FAIL"


def test_presets_take_turns_and_keep_to_their_share_of_the_slots(tmp_path: Path) -> None:
    presets = load_presets()
    spaces = {name: space_around(presets[name]) for name in ("balanced", "stroke")}
    plan = Plan(spaces=spaces, trials=2, slots=2, sampler="random")
    storage = open_storage(tmp_path)
    studies = {name: PresetStudy(space, plan, storage) for name, space in spaces.items()}
    search = PresetSearch(studies, trials=2, slots=2)
    assert search.left == 4
    first, second = search.suggest("1"), search.suggest("2")
    assert {first["preset"], second["preset"]} == {"balanced", "stroke"}
    assert search.suggest("3") is None  # both have one running
    search.on_trial_complete("2", result_of(0.5, 0.5))
    assert search.suggest("4")["preset"] == second["preset"]
    for key in ("1", "4"):
        search.on_trial_complete(key, result_of(0.5, 0.5))
    assert search.suggest("5")["preset"] == first["preset"]
    assert search.suggest("6") == "FINISHED"


def test_the_folder_belongs_to_one_driver(tmp_path: Path) -> None:
    with sole_driver(tmp_path), pytest.raises(ClinfuseError, match="another driver"), sole_driver(tmp_path):
        pass
    with sole_driver(tmp_path):
        pass


def test_a_start_that_was_taken_but_not_yet_drawn_is_not_lost(tmp_path: Path) -> None:
    study = PresetStudy(SPACE, plan_of(), open_storage(tmp_path))
    study.study.ask()  # killed here: the preset's own point has left the queue, its values are not yet set
    again = PresetStudy(SPACE, plan_of(), open_storage(tmp_path))
    assert again.asked == 0
    asked = drive(again, 4)
    assert sorted(map(str, asked)) == sorted(map(str, SPACE.starts()))

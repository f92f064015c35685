"""Sweeps on real Ray with a problem of known answer: run, failures, resume, compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analytic import Zdt1
from clinfuse_sweeps.compare import compare, open_sweep
from clinfuse_sweeps.fronts import hypervolume
from clinfuse_sweeps.goals import Limit, losses
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import SweepResult, run_sweep
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.studies import sole_driver

from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse.presets import load_presets

pytestmark = pytest.mark.ray
PRESETS = load_presets()
SPACES = {name: space_around(PRESETS[name]) for name in ("balanced", "bone_tumor")}
PER_PRESET = 8


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Two presets, a failing trial each, one that kills its worker, one constraint."""
    plan = Plan(
        spaces=SPACES,
        trials=PER_PRESET,
        sampler="tpe",
        slots=2,
        limits=(Limit(metric="brain_ssim", sense=">=", bound=0.2),),
        facts={"cases": ["a"], "model_hash": "0"},
    )
    folder = tmp_path_factory.mktemp("sweep")
    register = tmp_path_factory.mktemp("loaded")
    problem = Zdt1(
        SPACES,
        cases=2,
        failing=frozenset({2}),
        killing=frozenset({"bone_tumor-0005"}),
        register=str(register),
    )
    result = run_sweep(plan, problem, folder)
    (folder / "loaded").write_text(str(len(list(register.iterdir()))))
    return result


def test_every_trial_is_a_row_and_failures_do_not_stop_the_sweep(finished: SweepResult) -> None:
    table = pd.read_parquet(finished.folder / "trials.parquet")
    pd.testing.assert_frame_equal(table, finished.table)
    assert table.groupby("preset").size().to_dict() == dict.fromkeys(SPACES, PER_PRESET)
    assert table["trial_id"].is_unique
    failed = table[table["state"] == "failed"].set_index("trial_id")["error"]
    assert failed.index.tolist() == ["balanced-0002", "bone_tumor-0002", "bone_tumor-0005"]
    assert "meant to fail" in failed["balanced-0002"]
    assert failed["bone_tumor-0005"] == "the worker died"
    assert not table.loc[table["state"] == "failed", "on_front"].any()
    done = table[table["state"] == "complete"]
    assert (done["cases"] == 2).all() and (done["seconds"] > 0).all()
    assert done["lesion_dice"].isna().all()  # the problem has no lesion: absent, not zero


def test_workers_stay_and_load_once(finished: SweepResult) -> None:
    # two slots; the trial that kills its worker is tried again on a new one, which it kills too
    assert int((finished.folder / "loaded").read_text()) <= 2 + 2


def test_first_trials_are_the_preset_and_its_neighbours(finished: SweepResult) -> None:
    rows = finished.table[finished.table["preset"] == "balanced"].sort_values("number")
    assert rows["origin"].tolist() == ["preset", *["neighbour"] * 3, *["search"] * 4]
    for row, point in zip(rows.to_dict("records"), SPACES["balanced"].starts(), strict=False):
        assert {name: row[name] for name in point} == pytest.approx(point)


def test_metrics_are_those_of_the_problem(finished: SweepResult) -> None:
    alpha = SPACES["balanced"].axes[0]
    rows = finished.table[(finished.table["preset"] == "balanced") & (finished.table["state"] == "complete")]
    for row in rows.to_dict("records"):
        assert row["brain_ssim"] == pytest.approx(1 - alpha.fraction(row["alpha"]))


def test_constraint_keeps_trials_off_the_front(finished: SweepResult) -> None:
    table = finished.table
    broken = (table["brain_ssim"] < 0.2) & (table["state"] == "complete")
    assert not table.loc[broken, "feasible"].any()
    front = table[table["on_front"]]
    assert (front["brain_ssim"] >= 0.2).all()
    for preset in SPACES:
        written = pd.read_parquet(finished.folder / "fronts" / f"{preset}.parquet")
        assert sorted(written["trial_id"]) == sorted(front.loc[front["preset"] == preset, "trial_id"])
        assert written["knee"].sum() == 1


def test_a_finished_folder_is_not_overwritten_and_resume_adds_only_what_is_asked(
    finished: SweepResult, ray_session: None
) -> None:
    plan = open_sweep(finished.folder).plan
    with pytest.raises(ConfigError, match="--resume"):
        run_sweep(plan, Zdt1(SPACES), finished.folder)
    again = run_sweep(plan, Zdt1(SPACES, cases=2), finished.folder, resume=True)
    pd.testing.assert_frame_equal(again.table, finished.table)
    assert again.compute_seconds == 0


def test_two_drivers_are_kept_apart(finished: SweepResult, ray_session: None) -> None:
    with sole_driver(finished.folder), pytest.raises(ClinfuseError, match="another driver"):
        run_sweep(open_sweep(finished.folder).plan, Zdt1(SPACES), finished.folder, resume=True)


def test_same_seed_same_sweep(finished: SweepResult, ray_session: None, tmp_path: Path) -> None:
    plan = open_sweep(finished.folder).plan
    again = run_sweep(plan, Zdt1(SPACES, cases=2, failing=frozenset({2})), tmp_path / "again")
    names = [*plan.params, "brain_ssim", "bone_ssim", "state", "on_front"]
    first, second = (t[t["preset"] == "balanced"][names] for t in (finished.table, again.table))
    pd.testing.assert_frame_equal(first, second)


def test_sweep_of_which_nothing_completes_says_why(ray_session: None, tmp_path: Path) -> None:
    plan = Plan(spaces={"balanced": SPACES["balanced"]}, trials=2)
    with pytest.raises(ClinfuseError, match="meant to fail"):
        run_sweep(plan, Zdt1(SPACES, failing=frozenset({0, 1})), tmp_path)
    assert (pd.read_parquet(tmp_path / "trials.parquet")["state"] == "failed").all()


def test_dominated_trials_are_stopped_and_stay_off_the_front(ray_session: None, tmp_path: Path) -> None:
    spaces = {"balanced": SPACES["balanced"]}
    plan = Plan(spaces=spaces, trials=14, sampler="random", halving=True)
    result = run_sweep(plan, Zdt1(spaces, cases=6, noise=0.02), tmp_path)
    stopped = result.table[result.table["state"] == "stopped"]
    assert len(stopped) > 0 and (stopped["cases"] < 6).all() and (stopped["cases"] >= 2).all()
    assert not stopped["on_front"].any()
    assert (result.table.loc[result.table["state"] == "complete", "cases"] == 6).all()


def test_comparison_of_the_finished_sweep(finished: SweepResult) -> None:
    sweep = open_sweep(finished.folder)
    comparison = compare([sweep])
    assert [entry.label for entry in comparison.entries] == list(SPACES)
    for entry, row in zip(comparison.entries, comparison.numbers.to_dict("records"), strict=True):
        values = losses(entry.table[entry.table["feasible"]].to_dict("records"), comparison.goals)
        assert row["hypervolume"] == pytest.approx(hypervolume(values, comparison.reference))
        assert row["low"] <= row["high"] <= row["hypervolume"] + 1e-12
        assert row["failed"] == {"balanced": 1, "bone_tumor": 2}[row["preset"]]
    assert np.diag(comparison.coverage).tolist() == [1.0, 1.0]

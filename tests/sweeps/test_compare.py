"""Comparison, report and export from hand-made sweep folders: no Ray, no model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clinfuse_platform.storage import write_table
from clinfuse_sweeps.compare import Sweep, compare, open_sweep, position, trade
from clinfuse_sweeps.export import export_preset
from clinfuse_sweeps.figures import fronts_figure, png
from clinfuse_sweeps.goals import GOALS, find_goals, parse_limit
from clinfuse_sweeps.importance import importance
from clinfuse_sweeps.plan import Plan, check_continues, load_plan
from clinfuse_sweeps.report import report
from clinfuse_sweeps.scatter_matrix import scatter_matrix, shown_goals
from clinfuse_sweeps.space import Axis, space_around
from clinfuse_sweeps.trials import trials_table, write_fronts

from clinfuse.errors import ConfigError, InputError
from clinfuse.presets import Preset, load_presets

PRESETS = load_presets()
GOAL_PAIR = find_goals(["brain_ssim", "bone_ssim"])
# preset's own place, then an elbow with its knee at (0.90, 0.88), one dominated, one failed, one without lesion
POINTS = [(0.80, 0.80), (0.70, 0.95), (0.90, 0.88), (0.95, 0.60), (0.60, 0.60), (math.nan, 0.9)]


def make_sweep(
    folder: Path,
    points: Sequence[tuple[float, float]] = POINTS,
    *,
    presets: Sequence[str] = ("balanced",),
    limits: Sequence[str] = (),
    seed: int = 0,
    shift: float = 0.0,
    overrides: Mapping[str, Axis | None] | None = None,
    **facts: object,
) -> Sweep:
    """Write a sweep folder by hand; the second preset leans from brain to bone by 0.05."""
    spaces = {name: space_around(PRESETS[name], overrides) for name in presets}
    plan = Plan(
        spaces=spaces,
        trials=len(points),
        seed=seed,
        limits=tuple(parse_limit(text) for text in limits),
        facts={"cases": ["a"], "model_hash": "x", **facts},
    )
    rng = np.random.default_rng(seed)
    rows = []
    for place, (name, space) in enumerate(spaces.items()):
        for number, (brain, bone) in enumerate(points):
            params = space.origin() if number == 0 else {a.name: a.at(rng.random()) for a in space.axes}
            complete = math.isfinite(brain)
            rows.append(
                {
                    "trial_id": f"{name}-{number:04d}",
                    "preset": name,
                    "number": number,
                    "origin": "preset" if number == 0 else "search",
                    "seed": seed,
                    **params,
                    "brain_ssim": brain - 0.05 * place + shift,
                    "bone_ssim": bone + 0.05 * place + shift,
                    "seconds": 1.0,
                    "cases": 1,
                    "state": "complete" if complete else "failed",
                    "error": "" if complete else "no finite value of brain_ssim",
                    "feasible": complete,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    plan.save(folder)
    table = trials_table(rows, params=plan.params, metrics=tuple(GOALS), goals=plan.goals)
    write_table(folder / "trials.parquet", table)
    write_fronts(table, folder, plan.goals)
    return open_sweep(folder)


def test_front_and_knee_by_hand(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    (entry,) = compare([sweep]).entries
    assert entry.table.loc[entry.table["on_front"], "number"].tolist() == [1, 2, 3]
    assert entry.knee is not None and entry.knee["number"] == 2
    assert position(entry, GOAL_PAIR) == "its own values are dominated by balanced-0002"
    table = trade(entry, GOAL_PAIR)
    assert table["position"].tolist()[:2] == ["preset now", "knee"]
    knee = table.iloc[1]
    assert knee["Brain SSIM to MRI Δ"] == pytest.approx(0.10)
    assert knee["Bone SSIM to CT Δ"] == pytest.approx(0.08)
    front = pd.read_parquet(tmp_path / "fronts" / "balanced.parquet")
    assert front["brain_ssim"].tolist() == [0.95, 0.90, 0.70]


def test_hypervolume_by_hand_against_the_common_reference(tmp_path: Path) -> None:
    comparison = compare([make_sweep(tmp_path)])
    # feasible points span brain 0.60…0.95 and bone 0.60…0.95; the reference lies a tenth below
    assert (-comparison.reference).tolist() == pytest.approx([0.565, 0.565])
    expected = (
        (0.70 - 0.565) * (0.95 - 0.565) + (0.90 - 0.70) * (0.88 - 0.565) + (0.95 - 0.90) * (0.60 - 0.565)
    )
    row = comparison.numbers.iloc[0]
    assert row["hypervolume"] == pytest.approx(expected)
    assert row["share"] == pytest.approx(1.0)
    assert (row["trials"], row["failed"], row["feasible"], row["front"]) == (6, 1, 5, 3)


def test_limits_move_the_front(tmp_path: Path) -> None:
    (entry,) = compare([make_sweep(tmp_path, limits=["bone_ssim>=0.7"])]).entries
    assert entry.table.loc[entry.table["on_front"], "number"].tolist() == [1, 2]


def test_no_feasible_trial_names_the_constraint(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, limits=["bone_ssim>=0.99", "brain_ssim>=0.1"])
    with pytest.raises(ConfigError, match=r"5 completed trials, of which 5 break bone_ssim>=0\.99"):
        compare([sweep])


def test_seeds_of_one_preset_are_runs_and_other_models_are_entries(tmp_path: Path) -> None:
    first = make_sweep(tmp_path / "a")
    second = make_sweep(tmp_path / "b", seed=1, shift=0.02)
    other = make_sweep(tmp_path / "c", model_hash="y")
    pooled = compare([first, second])
    (entry,) = pooled.entries
    assert len(entry.runs) == 2 and len(entry.table) == 12
    row = pooled.numbers.iloc[0]
    assert row["low"] < row["high"] == pytest.approx(row["hypervolume"])
    apart = compare([first, other])
    assert [e.label for e in apart.entries] == ["balanced (a)", "balanced (c)"]
    assert any("different models" in text for text in apart.warnings)
    # both runs hold a trial of each number: names say which run is meant, on the page and for the export
    names = [entry.trial_name(row) for row in entry.table.to_dict("records")]
    assert len(set(names)) == 12 and {"a/balanced-0002", "b/balanced-0002"} <= set(names)
    html = report(pooled, [first, second], title="t")
    assert "trial:balanced:b/balanced-0002" in html and "trial:balanced:balanced-0002" not in html
    with pytest.raises(ConfigError, match="a/balanced-0002, b/balanced-0002"):
        export_preset(pooled, [first, second], "balanced", tmp_path, trial="balanced-0002")
    path = export_preset(pooled, [first, second], "balanced", tmp_path, trial="b/balanced-0002")
    assert json.loads(path.with_suffix(".provenance.json").read_text())["sweep"] == "b"


def test_presets_lean_as_made_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, presets=("balanced", "bone_tumor"))
    balanced, bone = compare([sweep]).entries
    assert balanced.knee is not None and bone.knee is not None
    assert bone.knee["bone_ssim"] > balanced.knee["bone_ssim"]
    assert [e.label for e in compare([sweep], presets=["bone_tumor"]).entries] == ["bone_tumor"]
    with pytest.raises(ConfigError, match="balanced, bone_tumor"):
        compare([sweep], presets=["stroke"])


def test_report_is_self_contained_and_says_what_matters(tmp_path: Path) -> None:
    sweeps = [make_sweep(tmp_path / "a", presets=("balanced", "bone_tumor"), simulated=True)]
    comparison = compare(sweeps)
    html = report(comparison, sweeps, title="Two <presets>", commands=["clinfuse sweep m --data d"])
    assert "Research use only" in html and "simulated CT" in html
    assert "Two &lt;presets&gt;" in html and "clinfuse sweep m" in html
    assert "dominated by balanced-0002" in html
    assert "no finite value of brain_ssim" in html
    for fetched in ('src="http', "<link", "url(http", "@import"):
        assert fetched not in html
    for figure in (fronts_figure, scatter_matrix):
        assert png(figure, comparison).startswith(b"\x89PNG")
    assert [goal.name for goal in shown_goals(comparison)] == ["brain_ssim", "bone_ssim"]


def test_report_with_pictures_lets_choose_trials(tmp_path: Path) -> None:
    from PIL import Image

    from clinfuse.report.figures import png_bytes

    sweep = make_sweep(tmp_path)
    (tmp_path / "pictures").mkdir()
    picture = png_bytes(Image.new("L", (8, 8), 128))
    for name in ("anatomy", "companion", "balanced-0000", "balanced-0002"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(picture)
    html = report(compare([sweep]), [sweep], title="t")
    data = html.split('id="trials">')[1].split("</script>")[0]
    trials = json.loads(data)
    assert set(trials) == {f"balanced:balanced-{n:04d}" for n in (0, 1, 2, 3)}
    assert trials["balanced:balanced-0002"]["picture"].startswith("data:image/png")
    assert trials["balanced:balanced-0003"]["picture"] == ""


def test_exported_knee_is_a_preset_file_with_provenance(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    comparison = compare([sweep])
    path = export_preset(comparison, [sweep], "balanced", tmp_path / "out", name="balanced_knee")
    preset = load_presets(path)["balanced_knee"]
    knee = comparison.entries[0].knee
    assert knee is not None
    assert preset.alpha == pytest.approx(knee["alpha"], rel=1e-3)
    assert preset.lambda_dice == PRESETS["balanced"].lambda_dice
    body = json.loads(path.with_suffix(".json").read_text())
    assert "name" not in body and Preset(name="x", **body).alpha == preset.alpha
    told = json.loads(path.with_suffix(".provenance.json").read_text())
    assert told["trial"] == "balanced-0002" and told["metrics_on_validation"]["bone_ssim"] == 0.88
    other = export_preset(comparison, [sweep], "balanced", tmp_path / "out", trial="balanced-0003")
    assert load_presets(other)["balanced"].description.endswith("(trial balanced-0003).")
    refused: list[dict[str, str]] = [{"preset": "stroke"}, {"preset": "balanced", "trial": "balanced-0005"}]
    for wrong in refused:
        with pytest.raises(ConfigError):
            export_preset(comparison, [sweep], folder=tmp_path, **wrong)


def test_foreign_and_older_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep folder"):
        open_sweep(tmp_path)
    make_sweep(tmp_path / "s")
    path = tmp_path / "s" / "sweep.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 0}))
    with pytest.raises(InputError, match="another version"):
        load_plan(tmp_path / "s")
    path.write_text(json.dumps(data))
    (tmp_path / "s" / "trials.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"trials\.parquet"):
        open_sweep(tmp_path / "s")


def test_plan_survives_its_file_and_refuses_nonsense(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path, limits=["seam<=0.3"], presets=("stroke", "balanced")).plan
    plan.save(tmp_path / "again")
    assert load_plan(tmp_path / "again") == plan
    spaces = {"balanced": space_around(PRESETS["balanced"])}
    for wrong in (
        {"sampler": "annealing"},
        {"rungs": 0},
        {"rungs": 2, "halving": True},
        {"trials": 0},
        {"objectives": ("seam",)},
        {"spaces": {}},
        {"slots": 0},
    ):
        with pytest.raises(ConfigError):
            Plan(**{"spaces": spaces, "trials": 1, **wrong})  # type: ignore[arg-type]


def test_a_sweep_goes_on_only_with_the_same_question(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path, presets=("balanced",)).plan
    spaces = {**plan.spaces, "stroke": space_around(PRESETS["stroke"])}
    check_continues(plan, replace(plan, trials=99, slots=3, spaces=spaces))
    narrow = {"balanced": space_around(PRESETS["balanced"], {"kappa": None})}
    for change, word in (
        ({"facts": {**plan.facts, "model_hash": "y"}}, "model_hash=y"),
        ({"seed": 7}, "seed=7"),
        ({"spaces": narrow}, "space of balanced"),
        ({"spaces": {"stroke": spaces["stroke"]}}, "presets=stroke"),
    ):
        with pytest.raises(ConfigError, match=word):
            check_continues(plan, replace(plan, **change))


def test_importance_finds_the_value_that_matters() -> None:
    space = space_around(PRESETS["balanced"])
    rng = np.random.default_rng(3)
    rows = [{a.name: a.at(rng.random()) for a in space.axes} for _ in range(60)]
    table = pd.DataFrame(rows).assign(state="complete", brain_ssim=[r["kappa"] / 12 for r in rows])
    found = importance(table, space, GOALS["brain_ssim"])
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["kappa"] > 0.9
    assert importance(table.head(5), space, GOALS["brain_ssim"]) == {}


def test_empty_front_writes_an_empty_table(tmp_path: Path) -> None:
    nothing = [(math.nan, 0.5)]
    sweep = make_sweep(tmp_path, nothing)
    assert pd.read_parquet(tmp_path / "fronts" / "balanced.parquet").empty
    with pytest.raises(ConfigError, match="no trial was completed"):
        compare([sweep])

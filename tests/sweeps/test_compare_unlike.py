"""Sweeps that searched different values, or differ in more than the seed: laid side by side, never pooled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clinfuse_platform.verb_table import build_parser
from clinfuse_sweeps.compare import compare
from clinfuse_sweeps.export import export_preset
from clinfuse_sweeps.figures import parallel_coordinates
from clinfuse_sweeps.goals import parse_limit
from clinfuse_sweeps.pareto_verb import PARETO
from clinfuse_sweeps.space import Axis, space_around
from test_compare import POINTS, make_sweep

from clinfuse.errors import ConfigError
from clinfuse.presets import load_presets

GUIDANCE: dict[str, Axis | None] = {"eta": None, "eta_u": None, "kappa": None}
MANY = [(0.5 + 0.02 * n, 0.9 - 0.015 * n) for n in range(16)]  # enough for importance


@pytest.mark.parametrize("student_first", [False, True])
def test_a_teacher_and_its_student_are_compared(tmp_path: Path, student_first: bool) -> None:
    """A student's trials have no eta, eta_u, kappa: whole report, fronts and numbers all the same."""
    make_sweep(tmp_path / "teacher", MANY, model_hash="t")
    make_sweep(tmp_path / "student", MANY, overrides=GUIDANCE, model_hash="s")
    folders = [str(tmp_path / name) for name in ("teacher", "student")][:: -1 if student_first else 1]
    arguments = build_parser(PARETO).parse_args([*folders, "--out", str(tmp_path / "out")])
    done = PARETO.run(arguments)
    html = Path(done["result"]).read_text()
    assert "What matters" in html and "too few to say" not in html
    of_student = html.split("<caption>balanced (student)</caption>")[2]
    assert "<th>alpha</th>" in of_student.split("</table>")[0]
    assert "kappa" not in of_student.split("</table>")[0]
    assert any("different models" in text for text in done["warnings"])
    fronts = pd.read_parquet(tmp_path / "out" / "fronts.parquet")
    missing = fronts.groupby("entry")["kappa"].apply(lambda values: values.isna().all())
    assert missing.to_dict() == {"balanced (teacher)": False, "balanced (student)": True}


def test_values_not_searched_are_gaps_and_those_between_gaps_are_marked(tmp_path: Path) -> None:
    teacher = make_sweep(tmp_path / "a", MANY)
    student = make_sweep(tmp_path / "b", MANY, overrides={"beta": None, "eta": None})
    axes = parallel_coordinates(compare([teacher, student])).axes[0]
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    lines = [line for line in axes.lines if len(line.get_ydata()) == len(names)]
    shown = [line.get_ydata() for line in lines]
    whole, gapped = (np.isnan(np.array(lines, float)) for lines in (shown[: len(MANY)], shown[len(MANY) :]))
    assert not whole.any()
    assert [name for name, gap in zip(names, gapped.T, strict=True) if gap.all()] == ["beta", "eta"]
    assert gapped.sum() == 2 * len(MANY)
    assert [line.get_marker() == "." for line in lines] == len(MANY) * [False] + len(MANY) * [True]


@pytest.mark.parametrize("overrides", [{"kappa": None}, {"tau_mm": Axis(name="tau_mm", low=0.5, high=3.0)}])
def test_a_value_more_or_less_is_another_search(tmp_path: Path, overrides: dict[str, Axis | None]) -> None:
    sweeps = [make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", seed=1, overrides=overrides)]
    for order in (sweeps, sweeps[::-1]):
        comparison = compare(order)
        assert [len(entry.runs) for entry in comparison.entries] == [1, 1]
        assert comparison.warnings == (
            "The sweeps searched over different ranges or around different values: compare what they reach with care.",
        )


UNLIKE_FACTS = {
    "data_hash": ("d", "e", "on different data"),
    "members": (1, 3, "with different numbers of members"),
    "recipe": ("cpu-debug", "gpu-2d", "with different recipes"),
    "set": ({"a": 1}, {"a": 2}, "with different options of the recipe"),
    "split": ("val", "test", "on different splits"),
    "workers": (1, 2, "with different numbers of training workers"),
    "steps": (4, 8, "with different numbers of sampling steps"),
    "slices": (None, 8, "on slabs of different thickness"),
    "new_fact": (None, 1, "with different new_fact"),
}


@pytest.mark.parametrize("name", UNLIKE_FACTS)
def test_unlike_facts_are_not_pooled_and_the_reason_is_told(tmp_path: Path, name: str) -> None:
    first, second, words = UNLIKE_FACTS[name]
    sweeps = [
        make_sweep(tmp_path / "a", **{name: first}),
        make_sweep(tmp_path / "b", seed=1, **{name: second}),
    ]
    comparison = compare(sweeps)
    assert [entry.label for entry in comparison.entries] == ["balanced (a)", "balanced (b)"]
    assert comparison.warnings == (f"The sweeps were run {words}: compare their values with care.",)


UNLIKE_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "sampler": ({"sampler": "tpe"}, "with different samplers"),
    "trials": ({"trials": 99}, "with different numbers of trials"),
    "halving": ({"halving": True}, "with and without stopping dominated trials early"),
    "rungs": ({"rungs": 3}, "with different numbers of rungs"),
    "limits": ({"limits": (parse_limit("seam<=0.9"),)}, "under different constraints"),
    "objectives": ({"objectives": ("bone_ssim", "lesion_dice")}, "for different objectives"),
    "gpus": ({"gpus": 0.25, "cpus": 2.0}, "with different shares of the machine"),
}


@pytest.mark.parametrize("name", UNLIKE_PLANS)
def test_unlike_searches_are_not_pooled_and_the_reason_is_told(tmp_path: Path, name: str) -> None:
    change, words = UNLIKE_PLANS[name]
    first, second = make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", seed=1)
    comparison = compare([first, replace(second, plan=replace(second.plan, **change))])
    assert [len(entry.runs) for entry in comparison.entries] == [1, 1]
    (warning,) = comparison.warnings
    assert words in warning


def test_seed_and_slots_and_other_presets_make_no_other_search(tmp_path: Path) -> None:
    first = make_sweep(tmp_path / "a", set={"a": 1, "b": 2}, members=None)
    second = make_sweep(tmp_path / "b", seed=1, presets=("balanced", "stroke"), set={"b": 2, "a": 1})
    second = replace(second, plan=replace(second.plan, slots=4))
    comparison = compare([first, second])
    assert [(entry.label, len(entry.runs)) for entry in comparison.entries] == [
        ("balanced", 2),
        ("stroke", 1),
    ]
    assert comparison.warnings == ()


def test_a_preset_with_other_values_of_its_own_is_another(tmp_path: Path) -> None:
    first, second = make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", seed=1)
    changed = space_around(load_presets()["balanced"].changed(tau_mm=2.5))
    comparison = compare([first, replace(second, plan=replace(second.plan, spaces={"balanced": changed}))])
    assert len(comparison.entries) == 2 and len(comparison.warnings) == 1


def test_warnings_tell_of_the_presets_compared_alone(tmp_path: Path) -> None:
    first = make_sweep(tmp_path / "a")
    other = make_sweep(tmp_path / "b", presets=("stroke",), model_hash="y")
    assert compare([first, other], presets=["balanced"]).warnings == ()
    assert len(compare([first, other]).warnings) == 1


def test_labels_are_unlike_where_folders_have_one_name(tmp_path: Path) -> None:
    sweeps = [make_sweep(tmp_path / side / "night", model_hash=side) for side in "ab"]
    labels = [entry.label for entry in compare(sweeps).entries]
    assert labels == [f"balanced ({tmp_path / side / 'night'})" for side in "ab"]


def test_export_asks_which_of_two_searches_is_meant(tmp_path: Path) -> None:
    better = [(brain + 0.01, bone) for brain, bone in POINTS]
    sweeps = [make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", better, members=3)]
    comparison = compare(sweeps)
    with pytest.raises(ConfigError, match=r"balanced \(a\), balanced \(b\)"):
        export_preset(comparison, sweeps, "balanced", tmp_path)
    path = export_preset(comparison, sweeps, "balanced (b)", tmp_path)
    told = json.loads(path.with_suffix(".provenance.json").read_text())
    assert path.name == "balanced.yaml" and told["sweep"] == "b" and told["facts"]["members"] == 3

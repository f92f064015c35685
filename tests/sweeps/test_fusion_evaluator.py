"""A trial on a real (untrained, tiny) model: repeatable, sensitive to its values, pictures kept; then the verbs."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clinfuse_platform.variants import slab
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.store import CaseStore
from clinfuse_sweeps.fusion_evaluator import (
    FusionEvaluator,
    FusionSettings,
    check_cases,
    jitter_of,
    load_slabs,
)
from clinfuse_sweeps.goals import find_goals, parse_limit
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.trainable import Suggestion, mean_metrics
from clinfuse_sweeps.verbs import PARETO, SWEEP

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import recipe
from clinfuse.training.models import build_denoiser, build_lesion_head

SPACES = {"balanced": space_around(load_presets()["balanced"])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model folder; its anchored head makes sensible images all the same."""
    config = recipe("cpu-debug")
    pipeline = FusionPipeline(
        members=[build_denoiser(config)], lesion_head=build_lesion_head(config), diffusion=config.diffusion
    )
    folder = tmp_path_factory.mktemp("model") / "m"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def store(tiny_case: Case, tmp_path: Path) -> Path:
    """Two validation patients, one of them without a lesion."""
    path = tmp_path / "d.zarr"
    place = CaseStore(path)
    place.create()
    bare = np.zeros_like(tiny_case.lesion)
    cases = [
        replace(tiny_case, case_id="a", attrs={"patient": "a", "split": "val"}),
        replace(tiny_case, case_id="b", attrs={"patient": "b", "split": "val"}, lesion=bare),
    ]
    for case in cases:
        place.write(case)
    place.commit_manifest([manifest_row(case) for case in cases])
    return path


def suggestion(**changes: float) -> Suggestion:
    return Suggestion(preset="balanced", number=3, params={**SPACES["balanced"].origin(), **changes})


def test_scores_repeat_and_follow_the_values(model: Path, store: Path, tmp_path: Path) -> None:
    slabs = load_slabs(store, split="val", slices=3)
    assert [slab.shape[0] for slab in slabs] == [3, 3]
    settings = FusionSettings(model=str(model), spaces=SPACES, steps=2, pictures=str(tmp_path))
    evaluator = FusionEvaluator(settings, slabs)
    first = evaluator.score(suggestion(), 0)
    again = FusionEvaluator(settings, slabs).score(suggestion(), 0)
    assert first == again
    assert first != evaluator.score(suggestion(alpha=3.0, beta=0.4, eta=0.4), 0)
    assert {"brain_ssim", "bone_ssim", "lesion_dice", "seam"} <= set(first)
    assert 0 <= first["ece"] <= 1
    bare = evaluator.score(suggestion(), 1)
    assert np.isnan(bare["lesion_dice"])  # absent, and left out of the mean:
    assert mean_metrics([first, bare])["lesion_dice"] == pytest.approx(first["lesion_dice"])
    evaluator.finish(suggestion())
    assert (tmp_path / "balanced-0003.png").read_bytes().startswith(b"\x89PNG")
    assert slabs[0].anatomy.flags.writeable


def test_jitter_is_drawn_only_above_its_threshold(model: Path, store: Path) -> None:
    slabs = load_slabs(store, split="val", slices=3, limit=1)
    settings = FusionSettings(model=str(model), spaces=SPACES, steps=2)
    evaluator = FusionEvaluator(settings, slabs)
    still = evaluator.fuse(suggestion(), 0).fused
    assert np.array_equal(still, evaluator.fuse(suggestion(jitter_mm=0.01), 0).fused)
    assert not np.array_equal(still, evaluator.fuse(suggestion(jitter_mm=2.0), 0).fused)
    drawn = jitter_of({"jitter_mm": 2.0, "jitter_deg": 0.5})
    assert (drawn.translation_mm, drawn.rotation_deg, drawn.elastic_mm) == (2.0, 0.5, 1.0)
    one, other = (evaluator.fuse(suggestion(schedule=number), 0).fused for number in (0, 2))
    assert np.array_equal(one, still) and not np.array_equal(one, other)


def test_what_no_trial_could_measure_is_refused_before_the_first(tiny_case: Case) -> None:
    goals = find_goals(["brain_ssim", "lesion_dice"])
    check_cases([tiny_case], goals, ())
    bare = replace(tiny_case, lesion=np.zeros_like(tiny_case.lesion))
    with pytest.raises(ConfigError, match="a lesion mask in at least one case"):
        check_cases([bare], goals, ())
    with pytest.raises(ConfigError, match="model with a lesion head"):
        check_cases([tiny_case], goals, (), lesion_head=False)
    with pytest.raises(ConfigError, match="lesion_hd95_mm cannot be measured"):
        check_cases([bare], goals[:1], (parse_limit("lesion_hd95_mm<=5"),))
    with pytest.raises(InputError, match="no validation cases"):
        check_cases([], goals, ())


def test_searched_steps_count_more_than_those_of_the_sweep(model: Path, store: Path) -> None:
    slabs = load_slabs(store, split="val", slices=3, limit=1)
    evaluator = FusionEvaluator(FusionSettings(model=str(model), spaces=SPACES, steps=2), slabs)
    assert evaluator.fuse(suggestion(), 0).info["steps"] == 2
    assert evaluator.fuse(suggestion(steps=3), 0).info["steps"] == 3


def test_a_sweep_sees_the_slices_that_an_evaluation_sees(store: Path) -> None:
    whole = {case_id: CaseStore(store).read(case_id) for case_id in ("a", "b")}
    for found in load_slabs(store, split="val", slices=3):
        np.testing.assert_array_equal(found.anatomy, slab(whole[found.case_id], 3).anatomy)
        np.testing.assert_array_equal(found.affine, slab(whole[found.case_id], 3).affine)
    with pytest.raises(ConfigError, match="--slices"):
        load_slabs(store, split="val", slices=0)


def test_objectives_without_their_roi_are_refused_before_the_start(tiny_case: Case) -> None:
    bare = replace(tiny_case, lesion=np.zeros_like(tiny_case.lesion))
    check_cases([bare], find_goals(["brain_ssim", "bone_ssim"]), [])
    with pytest.raises(ConfigError, match="lesion_dice cannot be measured"):
        check_cases([bare], find_goals(["brain_ssim", "lesion_dice"]), [])
    with pytest.raises(InputError, match="no validation cases"):
        check_cases([], find_goals(["brain_ssim", "bone_ssim"]), [])


def _arguments(verb: object, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(words)


@pytest.mark.ray
def test_verbs_from_model_to_preset_file(model: Path, store: Path, tmp_path: Path, ray_session: None) -> None:
    out = tmp_path / "sweep"
    words = [
        str(model),
        "--data",
        str(store),
        "--presets",
        "balanced,stroke",
        "--trials",
        "3",
        "--out",
        str(out),
    ]
    words += ["--slices", "3", "--steps", "2", "--slots", "2", "--limit", "bone_ssim>=-1"]
    result = SWEEP.run(_arguments(SWEEP, *words))
    assert (result["completed"], result["failed"]) == (6, 0)
    assert "Research use only" in Path(result["result"]).read_text(encoding="utf-8")
    table = pd.read_parquet(out / "trials.parquet")
    assert table[["brain_ssim", "bone_ssim", "seam"]].notna().all().all()
    assert len(list((out / "pictures").glob("*-*.png"))) == 6
    facts = json.loads((out / "sweep.json").read_text())["facts"]
    assert facts["cases"] == ["a", "b"] and facts["model_hash"]
    compared = PARETO.run(_arguments(PARETO, str(out), "--export", "stroke", "--out", str(tmp_path / "p")))
    assert load_presets(Path(compared["preset"]))["stroke"].steps == load_presets()["stroke"].steps
    assert json.loads(json.dumps(compared))["numbers"]
    with pytest.raises(ConfigError, match="--resume"):
        SWEEP.run(_arguments(SWEEP, *words))
    with pytest.raises(ConfigError, match="something else"):
        SWEEP.run(_arguments(SWEEP, *words, "--resume", "--seed", "5"))
    with pytest.raises(ConfigError, match="brain_ssim"):
        SWEEP.run(_arguments(SWEEP, *words[:-2], "--objectives", "brain_sim,seam"))

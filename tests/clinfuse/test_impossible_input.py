"""What cannot be is refused at once, by an error that names it; what can be made right is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clinfuse.case import Case
from clinfuse.errors import ConfigError, GeometryError
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.jitter import JitterConfig
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets, parse_presets
from clinfuse.training import build_denoiser, recipe

SMALL = {"crop": (16, 16), "denoiser.channels": (8, 16), "diffusion.train_timesteps": 50}


@pytest.fixture(scope="module")
def pipeline() -> FusionPipeline:
    config = recipe("cpu-debug", **SMALL)
    return FusionPipeline(
        members=[build_denoiser(config)], lesion_head=None, diffusion=config.diffusion, kind="student"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter_share": 5}, "0 <= jitter_share <= 1"),
        ({"contrast_share": 7}, "0 <= contrast_share <= 1"),
        ({"refine_steps": -1}, "0 <= refine_steps"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"lesion_learning_rate": 0}, "lesion_learning_rate"),
        ({"roi_weight": -0.1}, "0 <= roi_weight"),
        ({"tau_mm": -1}, "0.1 <= tau_mm"),
        ({"distill_batches": 0}, "1 <= distill_batches"),
        ({"member_steps": -3}, "1 <= member_steps"),
        ({"denoiser_steps": 2.5}, "whole"),
        ({"batch_size": "4"}, "batch_size='4'"),
        ({"crop": 16}, "crop"),
        ({"seed.x": 3}, "no such training option"),
        ({"denoiser.levels.x": 3}, "no such training option"),
        ({"denoiser": 3}, "options of one kind"),
        ({"jitter.rotation_deg": 90}, "0 <= rotation_deg <= 45"),
        ({"diffusion.beta_schedule": "steep"}, "unknown beta_schedule"),
    ],
)
def test_impossible_training_is_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe("cpu-debug", **change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"steps": 0}, "1 to 50 reverse steps; found 0"),
        ({"steps": -1}, "1 to 50 reverse steps; found -1"),
        ({"steps": 51}, "1 to 50 reverse steps; found 51"),
        ({"samples": 0}, "samples >= 1"),
        ({"jitters": -1}, "jitters >= 0"),
    ],
)
def test_impossible_calls_are_refused(
    pipeline: FusionPipeline, tiny_case: Case, call: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(tiny_case.slices(0, 2), **call)


def test_as_many_steps_as_noise_levels_are_possible(pipeline: FusionPipeline, tiny_case: Case) -> None:
    assert pipeline(tiny_case.slices(0, 1), steps=50).info["steps"] == 50
    preset = load_presets()["balanced"]
    (sample,) = pipeline.sample_together([(tiny_case.slices(0, 1), preset, 0)], 0, steps=1)
    assert sample.steps == 1
    with pytest.raises(ConfigError, match="found 0"):
        pipeline.sample_together([(tiny_case.slices(0, 1), preset, 0)], 0, steps=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_presets("mine: {name: other}"), "unknown preset value.*found name"),
        (lambda: parse_presets("mine: {1: 2}"), "unknown preset value.*found 1"),
        (lambda: parse_presets("mine: {alpha: '2'}"), "0 <= alpha <= 10"),
        (lambda: load_presets(Path("no-such-file.yaml")), "cannot be read"),
        (lambda: load_presets(Path(__file__).parent), "cannot be read"),
        (lambda: JitterConfig(elastic_mm=float("inf")), "0 <= elastic_mm <= 20"),
        (lambda: DiffusionConfig(beta_schedule="steep"), "unknown beta_schedule"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_images_of_double_precision_are_taken_as_single(pipeline: FusionPipeline, tiny_case: Case) -> None:
    slab = tiny_case.slices(4, 6)
    images = {name: getattr(slab, name).astype(np.float64) for name in ("anatomy", "companion")}
    wide = replace(slab, **images, aligned_companion=images["companion"])
    assert {wide.anatomy.dtype, wide.companion.dtype, wide.aligned_companion.dtype} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(pipeline(wide).fused, pipeline(slab).fused)


def test_an_empty_volume_is_refused(tiny_case: Case) -> None:
    names = ("anatomy", "companion", "brain", "bone", "lesion")
    with pytest.raises(GeometryError, match="none of them empty"):
        replace(tiny_case, **{name: getattr(tiny_case, name)[:0] for name in names})

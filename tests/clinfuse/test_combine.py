"""Combining draws: the law of total variance in closed form, and what the sidecar may promise of the maps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from clinfuse.case import Case
from clinfuse.combine import FusionResult, MemberSample, ModelFacts, combine_samples
from clinfuse.errors import ConfigError
from clinfuse.method.calibration import Calibration, fit_calibration
from clinfuse.method.variances import HALF_SATURATION
from clinfuse.outputs import write_fused
from clinfuse.presets import Preset

FIRST_ORDER = 0.01


def draws(case: Case, members: int, samples: int, jitters: int, variance: float = 0.0) -> list[MemberSample]:
    """One random image per member, draw and jitter (0 … jitters), in no order that combining could rely on."""
    rng = np.random.default_rng(3)
    made = [
        MemberSample(
            fused=rng.random(case.shape, dtype=np.float32),
            variance=np.full(case.shape, variance, np.float32),
            registration=np.full(case.shape, FIRST_ORDER, np.float32),
            residual_energy=0.0,
            member=m,
            sample=s,
            jitter=j,
            steps=4,
        )
        for m, s, j in product(range(members), range(samples), range(jitters + 1))
    ]
    return made[::-1]


def combined(
    case: Case, made: list[MemberSample], calibration: Calibration | None = None, asked: int = 1
) -> FusionResult:
    facts = ModelFacts(kind="student", model_hash="h", error_head=None, calibration=calibration)
    return combine_samples(made, case, Preset(name="p"), facts, asked=asked, seed=0)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    std, error = rng.random((2, 2000)) / 10
    return fit_calibration([std], [error], [{}], coverage=0.8)


@pytest.mark.parametrize(("members", "samples", "jitters"), [(3, 3, 2), (1, 4, 3), (3, 1, 2), (2, 5, 1)])
def test_with_jitters_the_parts_sum_to_the_variance_of_all_draws(
    tiny_case: Case, members: int, samples: int, jitters: int
) -> None:
    made = draws(tiny_case, members, samples, jitters, variance=0.002)
    result = combined(tiny_case, made)
    total = np.var([s.fused for s in made], axis=0) + 0.002
    np.testing.assert_allclose(result.variances.total, total, rtol=1e-4)
    grid = np.stack([s.fused for s in made[::-1]]).reshape(members, samples, jitters + 1, *tiny_case.shape)
    np.testing.assert_allclose(result.registration, grid.var(axis=2).mean(axis=(0, 1)), rtol=1e-4, atol=1e-7)
    sampling = grid.mean(axis=2).var(axis=1).mean(axis=0)
    np.testing.assert_allclose(result.aleatoric, 0.002 + sampling, rtol=1e-4)
    np.testing.assert_allclose(result.epistemic, grid.mean(axis=(1, 2)).var(axis=0), rtol=1e-3, atol=1e-7)


def test_without_jitters_registration_is_that_of_first_order(tiny_case: Case) -> None:
    made = draws(tiny_case, 2, 3, 0)
    result = combined(tiny_case, made)
    assert np.all(result.registration == np.float32(FIRST_ORDER))
    total = np.var([s.fused for s in made], axis=0) + FIRST_ORDER
    np.testing.assert_allclose(result.variances.total, total, rtol=1e-4)


def test_a_calibrated_sidecar_states_tolerance_and_coverage(
    tiny_case: Case, calibration: Calibration, tmp_path: Path
) -> None:
    result = combined(tiny_case, draws(tiny_case, 2, 1, 0), calibration)
    info = result.info
    assert info["units"]["uncertainty"].startswith("calibrated")
    assert (info["error_tolerance"], info["interval_coverage"]) == (calibration.tolerance, 0.8)
    write_fused(result, tiny_case, tmp_path)
    (sidecar,) = tmp_path.glob("*fused*.json")
    assert json.loads(sidecar.read_text())["interval_coverage"] == 0.8


def test_calibration_promises_nothing_of_jittered_draws(tiny_case: Case, calibration: Calibration) -> None:
    result = combined(tiny_case, draws(tiny_case, 2, 1, 1), calibration)
    assert result.interval is not None
    assert result.info["units"]["uncertainty"].startswith("uncalibrated")
    assert "unknown coverage" in result.info["units"]["interval"]
    assert not {"error_tolerance", "interval_coverage"} & set(result.info)


def test_without_calibration_doubt_is_half_at_the_stated_std(tiny_case: Case) -> None:
    made = [
        replace(s, registration=np.full(tiny_case.shape, HALF_SATURATION**2, np.float32))
        for s in draws(tiny_case, 1, 1, 0)
    ]
    result = combined(tiny_case, made)
    np.testing.assert_allclose(result.uncertainty, 0.5, rtol=1e-5)
    assert result.interval is None
    assert not {"error_tolerance", "interval_coverage"} & set(result.info)


def test_no_answer_is_refused(tiny_case: Case) -> None:
    with pytest.raises(ConfigError, match="no member answered"):
        combined(tiny_case, [])

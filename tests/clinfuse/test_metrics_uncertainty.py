"""Calibration, coverage and ranking measures on predictions whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clinfuse.baselines import BASELINES
from clinfuse.case import Case
from clinfuse.errors import GeometryError, InputError
from clinfuse.evaluation import evaluate_case, paired_tests, summarise
from clinfuse.metrics import (
    brier,
    coverage,
    ece,
    rank_correlation,
    reliability,
    sparsification,
)
from clinfuse.presets import load_presets

PRESET = load_presets()["balanced"]


def test_calibrated_and_overconfident_predictions() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    event = rng.random(p.size) < p
    assert ece(p, event) < 0.006
    assert brier(p, event) == pytest.approx(1 / 6, abs=0.002), "E[p(1 − p)] of a uniform p"
    squared = rng.random(p.size) < p**2
    assert ece(p, squared) == pytest.approx(1 / 6, abs=0.005), "E[p − p²]"
    diagram = reliability(p, squared, bins=10)
    assert np.allclose(diagram.observed, diagram.predicted**2, atol=0.02) and diagram.count.sum() == p.size


def test_extremes_and_empty_bins() -> None:
    assert ece(np.ones(5), np.ones(5)) == 0.0 and ece(np.ones(5), np.zeros(5)) == 1.0
    assert brier(np.full(4, 0.5), np.array([0, 1, 0, 1])) == 0.25
    diagram = reliability(np.array([0.05, 0.95]), np.array([0, 1]), bins=4)
    assert diagram.count.tolist() == [1, 0, 0, 1] and np.isnan(diagram.observed[1])
    assert diagram.ece == pytest.approx(0.05)
    assert np.isnan(ece(np.array([]), np.array([]))) and np.isnan(brier(np.array([]), np.array([])))
    assert np.isnan(coverage(np.array([]), np.array([])))


def test_coverage_of_a_gaussian() -> None:
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.5, 2.0, 100_000)
    error = np.abs(rng.normal(0, sigma))
    assert coverage(error, 1.6449 * sigma) == pytest.approx(0.9, abs=0.005)


def test_sparsification_perfect_random_reversed() -> None:
    rng = np.random.default_rng(2)
    error = rng.random(20_000)
    perfect, useless = sparsification(error, error**3), sparsification(error, rng.random(error.size))
    assert perfect.ause == pytest.approx(0.0, abs=1e-9) and perfect.ratio == pytest.approx(0.0, abs=1e-9)
    assert useless.ratio == pytest.approx(1.0, abs=0.05)
    assert sparsification(error, -error).ratio > 1.5
    # uniform errors: the best ranking leaves a mean of (1 − x)/2
    assert np.allclose(perfect.by_error, (1 - perfect.removed) / 2, atol=0.01)


def test_ties_count_as_random_not_as_lucky() -> None:
    error = np.arange(1000.0)
    constant = sparsification(error, np.zeros(1000))
    assert constant.ratio == pytest.approx(1.0)
    assert np.isnan(rank_correlation(error, np.zeros(1000)))
    assert rank_correlation(error, np.exp(error / 500)) == pytest.approx(1.0)
    assert np.isnan(sparsification(np.full(10, 0.1), np.arange(10.0)).ratio), (
        "no ranking can help equal errors"
    )


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_equal_errors_bound_the_rank_correlation_and_not_the_sparsification(share: float) -> None:
    doubt = np.arange(10_000.0)
    error = np.maximum(doubt - share * doubt.size, 0)
    assert rank_correlation(error, doubt) == pytest.approx(np.sqrt(1 - share**3), abs=1e-3)
    assert sparsification(error, doubt).ratio == pytest.approx(0, abs=1e-9)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\].*1\.5"):
        ece(np.array([1.5]), np.array([1]))
    with pytest.raises(GeometryError, match=r"\(2,\).*\(3,\)"):
        coverage(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="none"):
        sparsification(np.array([]), np.array([]))


@dataclass
class Doubt:
    """A result whose uncertainty is chosen by the test."""

    uncertainty: np.ndarray
    interval: np.ndarray | None
    info: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("aligned_known", [True, False])
def test_rows_of_a_perfect_doubt(aligned_known: bool, tiny_case: Case) -> None:
    case = replace(tiny_case, aligned_companion=tiny_case.companion) if aligned_known else tiny_case
    fused = BASELINES["mean"](case, PRESET)
    bone = case.bone > 0
    target = np.where(bone, case.companion, case.anatomy)
    target = BASELINES["refined"](case, PRESET) if aligned_known else target
    error = np.abs(fused - target)
    result = Doubt((error > 0.1).astype(np.float32), error + 1e-6, {"error_tolerance": 0.1})
    rows = evaluate_case(case, fused, "ours", preset=PRESET, result=result)
    got = {(r["metric"], r["roi"]): r for r in rows}
    assert got["ece", "head"]["value"] == 0.0 and got["coverage", "brain"]["value"] == 1.0
    assert got["brier", "head"]["value"] == 0.0 and got["ause", "head"]["value"] >= 0
    assert (("ece", "lesion") in got) == aligned_known
    without = evaluate_case(case, fused, "ours", preset=PRESET, result=Doubt(result.uncertainty, None))
    assert not any(r["metric"] == "coverage" for r in without)


def test_calibration_error_of_all_cases_together(tiny_case: Case) -> None:
    """A quarter too many events in one case and too few in the other: each is off by ¼, both together by nothing."""
    dark, none = np.zeros_like(tiny_case.anatomy), np.zeros_like(tiny_case.brain)
    case = replace(tiny_case, anatomy=dark, companion=dark, aligned_companion=dark)
    case = replace(case, brain=none + 1, bone=none, lesion=none)
    rows = []
    for name, share in (("a", 0.75), ("b", 0.25)):
        fused = (np.arange(dark.size) < share * dark.size).reshape(dark.shape).astype(np.float32)
        rows += evaluate_case(
            replace(case, case_id=name), fused, "m", preset=PRESET, result=Doubt(dark + 0.5, None)
        )
    frame = pd.DataFrame(rows)
    brain = summarise(frame).query("roi == 'brain'").set_index("metric")
    assert brain.loc["ece", "mean"] == pytest.approx(0.25)
    pooled = brain.loc["ece_pooled"]
    assert (pooled["mean"], pooled["low"], pooled["high"]) == pytest.approx((0, 0, 0.25)) and pooled["n"] == 2
    alone = summarise(frame[frame["case_id"] == "a"]).query("roi == 'brain'").set_index("metric")
    assert alone.loc["ece_pooled", "mean"] == pytest.approx(0.25)
    tested = paired_tests(pd.concat([frame, frame.assign(method="n")]))
    assert "ece" in set(tested["metric"]) and not any(m.startswith("gap") for m in tested["metric"])


def test_whole_image_rows(tiny_case: Case) -> None:
    fused = BASELINES["max"](tiny_case, PRESET)
    rows = evaluate_case(tiny_case, fused, "max", preset=PRESET, metrics="all", fmi_slices=2)
    assert not [r["status"] for r in rows if r["status"] != "ok"]
    names = {r["metric"] for r in rows if r["roi"] == "whole"}
    assert {"ssim", "psnr", "fsim", "FMI_pixel", "FMI_wavelet", "EN", "VIF", "Qabf", "SSIM_sum"} <= names

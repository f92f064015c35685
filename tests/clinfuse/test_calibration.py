"""Calibration on synthetic heteroscedastic cases: the promised figures on held-out cases, and the contracts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clinfuse.errors import ConfigError, GeometryError, InputError
from clinfuse.method.calibration import Calibration, fit_calibration
from clinfuse.method.conformal import REGIONS, regions
from clinfuse.method.knots import isotonic
from clinfuse.metrics.uncertainty import ece

SHAPE = (12, 32, 28)
Volume = tuple[NDArray, NDArray, dict[str, NDArray]]


def masks(lesion: bool = True) -> dict[str, NDArray]:
    d, h, w = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    radius = np.sqrt(((d - 5.5) / 6) ** 2 + ((h - 15.5) / 14) ** 2 + ((w - 13.5) / 13) ** 2)
    spot = np.sqrt((d - 5) ** 2 + (h - 15) ** 2 + (w - 12) ** 2) < 5
    return {
        "brain": (radius < 0.75).astype(np.uint8),
        "bone": ((radius > 0.8) & (radius < 0.95)).astype(np.uint8),
        "lesion": (spot & lesion).astype(np.uint8),
    }


def volume(seed: int, lesion: bool = True) -> Volume:
    """Predicted std that ranks rightly but is wrong in scale, differently in each region; Laplace in bone."""
    rng, rois = np.random.default_rng(seed), masks(lesion)
    std = 0.01 * np.exp(rng.normal(0.5, 0.7, SHAPE))
    scale = np.array([0.5, 1.5, 2.5, 4.0])[regions(SHAPE, rois)]
    noise = np.where(rois["bone"] > 0, rng.laplace(size=SHAPE) / np.sqrt(2), rng.normal(size=SHAPE))
    return std.astype(np.float32), (scale * std * noise).astype(np.float32), rois


def fitted(count: int = 12, **options: object) -> Calibration:
    std, error, rois = zip(*[volume(i) for i in range(count)], strict=True)
    return fit_calibration(std, error, rois, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fitted()


@pytest.fixture(scope="module")
def held_out() -> list[Volume]:
    return [volume(1000 + i) for i in range(12)]


def test_uncertainty_is_calibrated_on_held_out_cases(
    calibration: Calibration, held_out: list[Volume]
) -> None:
    event = np.stack([np.abs(error) > calibration.tolerance for _, error, _ in held_out])
    pooled = np.stack([calibration.uncertainty(std) for std, _, _ in held_out])
    by_region = np.stack([calibration.uncertainty(std, rois) for std, _, rois in held_out])
    labels = np.stack([regions(SHAPE, rois) for _, _, rois in held_out])
    assert ece(pooled, event) <= 0.02
    for label in range(len(REGIONS)):
        assert ece(by_region[labels == label], event[labels == label]) <= 0.02
    raw = np.stack([std for std, _, _ in held_out])
    assert ece(np.clip(raw, 0, 1), event) > 0.05


@pytest.mark.parametrize("nominal", [0.8, 0.9])
def test_coverage_is_nominal_in_every_region(nominal: float, held_out: list[Volume]) -> None:
    calibration = fitted(coverage=nominal)
    labels = np.stack([regions(SHAPE, rois) for _, _, rois in held_out])
    inside = np.stack([np.abs(error) <= calibration.interval(std, rois) for std, error, rois in held_out])
    for label in range(len(REGIONS)):
        assert inside[labels == label].mean() == pytest.approx(nominal, abs=0.01)


def test_expected_error_matches_the_mean_error(calibration: Calibration, held_out: list[Volume]) -> None:
    expected = np.stack([calibration.expected_error(std, rois) for std, _, rois in held_out])
    found = np.stack([np.abs(error) for _, error, _ in held_out])
    assert expected.mean() == pytest.approx(found.mean(), rel=0.02)
    for low, high in ((0, 0.02), (0.02, 0.05), (0.05, 0.2)):
        bin_ = (expected >= low) & (expected < high)
        assert expected[bin_].mean() == pytest.approx(found[bin_].mean(), rel=0.05)


def test_factors_are_those_of_the_known_distribution(calibration: Calibration) -> None:
    """|error|/std is half normal × scale: 90 % lie below 1.645 × scale; ε pulls the factor down a little."""
    std = volume(0)[0].astype(float)
    for name, scale, quantile in (("brain", 1.5, 1.645), ("lesion", 4.0, 1.645), ("bone", 2.5, 1.628)):
        factor = calibration.factors[name]
        assert factor is not None
        ratio = np.median(std / (std + calibration.epsilon))
        assert factor == pytest.approx(scale * quantile * ratio, rel=0.06)


def test_uncertainty_and_expected_error_never_decrease(calibration: Calibration) -> None:
    std = np.linspace(0, 1, 2001)
    for values in (calibration.uncertainty(std), calibration.expected_error(std)):
        assert (np.diff(values) >= 0).all()
        assert values.dtype == np.float32
    assert calibration.uncertainty(std).min() >= 0
    assert calibration.uncertainty(std).max() <= 1


def test_round_trip_through_json_is_exact(calibration: Calibration) -> None:
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    assert again == calibration
    std, _, rois = volume(5)
    assert np.array_equal(again.interval(std, rois), calibration.interval(std, rois))
    assert np.array_equal(again.uncertainty(std), calibration.uncertainty(std))


def test_the_same_seed_gives_the_same_calibration() -> None:
    assert fitted(3, seed=4) == fitted(3, seed=4)


def test_an_empty_region_is_declared_and_falls_back_to_the_pooled_factor() -> None:
    std, error, rois = zip(*[volume(i, lesion=False) for i in range(3)], strict=True)
    calibration = fit_calibration(std, error, rois)
    assert calibration.factors["lesion"] is None
    assert calibration.voxels["lesion"] == 0
    assert any("lesion" in note and "all regions together" in note for note in calibration.notes)
    lesion = masks()
    width = calibration.interval(std[0], lesion)
    where = lesion["lesion"] > 0
    np.testing.assert_allclose(
        width[where], (calibration.pooled_factor * (std[0] + calibration.epsilon))[where], rtol=1e-6
    )
    np.testing.assert_array_equal(
        calibration.uncertainty(std[0], lesion)[where], calibration.uncertainty(std[0])[where]
    )
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_every_case_counts_the_same_however_large() -> None:
    """One case twice as large and ten times as wrong must weigh half, not two thirds."""
    rng = np.random.default_rng(0)
    std = [np.full((8, 8, 8), 0.02), np.full((8, 8, 16), 0.02)]
    error = [rng.uniform(0, 0.01, std[0].shape), rng.uniform(0.1, 0.11, std[1].shape)]
    calibration = fit_calibration(std, error, [{}, {}], case_ids=["a", "b"])
    assert calibration.uncertainty(std[0]).mean() == pytest.approx(0.5)
    one_patient = fit_calibration(std, error, [{}, {}], case_ids=["a", "a"])
    assert one_patient.cases == 1
    assert one_patient.uncertainty(std[0]).mean() == pytest.approx(2 / 3, abs=1e-6)


def test_the_guarantee_needs_cases_and_holds_between_very_different_ones() -> None:
    """Cases differ in scale; over many draws of 19 + 1 cases the new one is covered at least nominally."""
    few = fitted(8)
    assert set(few.guaranteed_factors.values()) == {None}
    assert any("guaranteed" in note for note in few.notes)
    std, _, rois = volume(0)
    assert np.isinf(few.interval(std, rois, guaranteed=True)).all()
    rng, covered = np.random.default_rng(1), []
    for _ in range(40):
        stds = [np.full((4, 8, 8), 0.02)] * 20
        errors = [np.exp(rng.normal(0, 0.7)) * 0.02 * rng.normal(size=s.shape) for s in stds]
        fit = fit_calibration(stds[:19], errors[:19], [{}] * 19)
        covered.append((np.abs(errors[19]) <= fit.interval(stds[19], {}, guaranteed=True)).mean())
    standard_error = np.std(covered) / math.sqrt(len(covered))
    assert np.mean(covered) >= 0.9 - 2 * standard_error


def test_isotonic_equals_the_hand_worked_pooling() -> None:
    fit = isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 5.0]), np.ones(4))
    assert (fit.x, fit.y) == ((0.0, 1.0, 2.5, 4.0), (0.0, 1.0, 2.5, 5.0))
    np.testing.assert_allclose(
        fit(np.array([0.0, 0.5, 1.0, 2.0, 3.0, 9.0])), [0, 0.5, 1, 2, 2.5 + 2.5 / 3, 5]
    )


def test_what_one_pool_could_not_tell_apart_keeps_its_order() -> None:
    """Least spreads all alike in fitting, as errors there are noise: smaller ones are still told as smaller."""
    x = np.linspace(0.2, 1, 500)
    fit = isotonic(x, np.maximum(x, 0.6), np.ones(500))
    told = fit(np.array([0.0, 0.01, 0.1, 0.3, 0.39]))
    assert np.all(np.diff(told) > 0) and told[0] == 0
    assert isotonic(np.zeros(3), np.array([1.0, 2.0, 3.0]), np.ones(3))(np.array([0.0])) == 2


@pytest.mark.parametrize("seed", range(5))
def test_equal_spreads_are_told_the_same(seed: int) -> None:
    """Greys of 8 bit: few values, many voxels each, and weights that differ from voxel to voxel."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.gamma(2, 5, 4000)) / 255
    y = np.abs(rng.normal(0, x + 0.01))
    weight = rng.uniform(0.1, 1, 4000)
    fit = isotonic(x, y, weight)
    assert len(fit.x) <= 1 + len(np.unique(x))
    assert float(np.average(fit(x), weights=weight)) == pytest.approx(np.average(y, weights=weight), rel=0.05)


def test_impossible_input_is_refused(calibration: Calibration) -> None:
    std, error, rois = volume(0)
    with pytest.raises(ConfigError, match="coverage"):
        fit_calibration([std], [error], [rois], coverage=1.0)
    with pytest.raises(InputError, match="matching lists"):
        fit_calibration([std], [error], [])
    with pytest.raises(InputError, match="finite"):
        fit_calibration([-std], [error], [rois])
    with pytest.raises(GeometryError, match="differ in shape"):
        fit_calibration([std], [error[1:]], [rois])
    with pytest.raises(GeometryError, match="brain"):
        calibration.interval(std[1:], rois)
    stored = calibration.to_dict()
    with pytest.raises(InputError, match="no calibration of ours"):
        Calibration.from_dict({**stored, "format": "other"})
    lacking = {name: stored["event_by_region"][name] for name in ("brain", "bone")}
    with pytest.raises(InputError, match="lacks a region"):
        Calibration.from_dict({**stored, "event_by_region": lacking})
    with pytest.raises(InputError, match="monotone"):
        Calibration.from_dict({**stored, "event": {"x": [0.0, 1.0], "y": [1.0, 0.0]}})

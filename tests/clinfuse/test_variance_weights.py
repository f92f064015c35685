"""Weights of the variance's parts: found where they are known, cases balanced, the plain sum where there are none."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from clinfuse.method.variance_weights import Variances, fit_weights, weighted_std

SHAPE = (10, 40, 40)
TRUE = {"brain": (0.5, 3.0, 0.0, 1e-4), "bone": (0.0, 0.0, 1.5, 9e-4)}


def case(seed: int, count: int = 1) -> tuple[Variances, np.ndarray, dict[str, np.ndarray]]:
    """Variances of every size, masks of brain and bone, and Gaussian errors of the variance that `TRUE` gives them."""
    rng = np.random.default_rng(seed)
    shape = (SHAPE[0] * count, *SHAPE[1:])
    variances = Variances(*(rng.gamma(1.0, 1e-3, shape).astype(np.float32) for _ in range(3)))
    masks = {name: np.zeros(shape, np.uint8) for name in ("brain", "bone", "lesion")}
    masks["brain"][:, :18], masks["bone"][:, 18:36] = 1, 1
    error = np.zeros(shape)
    for name, weights in TRUE.items():
        variance = sum(w * part for w, part in zip(weights, (*variances, 1.0), strict=True))
        error += masks[name] * np.sqrt(variance) * rng.normal(size=shape)
    return variances, error.astype(np.float32), masks


def test_known_weights_are_found_and_foretell_the_error() -> None:
    cases = [case(seed) for seed in range(6)]
    weights = fit_weights(*map(list, zip(*cases, strict=True)), case_ids=list("abcdef"))  # type: ignore[call-overload]
    for name, true in TRUE.items():
        np.testing.assert_allclose(weights[name][:3], true[:3], rtol=0.1, atol=0.05)
        np.testing.assert_allclose(weights[name][3], true[3], atol=1e-4)
    assert weights["lesion"] is None
    variances, error, masks = case(99)
    bone = masks["bone"] > 0
    told, plain = (weighted_std(variances, masks, w)[bone] for w in (weights, {}))
    wrong = np.abs(error[bone])
    assert spearmanr(told, wrong).statistic > spearmanr(plain, wrong).statistic + 0.05
    assert abs(np.mean((wrong / told) ** 2) - 1) < 0.1, "the square of std is the variance of the error"


def test_without_weights_it_is_the_law_of_total_variance() -> None:
    variances, _, masks = case(3)
    np.testing.assert_allclose(weighted_std(variances, masks, {}), np.sqrt(sum(variances)), rtol=1e-6)
    some = weighted_std(variances, masks, {"bone": (0.0, 0.0, 0.0, 0.04), "brain": None})
    bone = masks["bone"] > 0
    np.testing.assert_allclose(some[bone], 0.2, rtol=1e-6)
    np.testing.assert_allclose(some[~bone], np.sqrt(sum(variances))[~bone], rtol=1e-6)


def test_every_case_counts_the_same_however_large() -> None:
    small, large = case(1), case(2, count=4)
    large[1][...] *= 2  # four times the variance
    both = fit_weights(*map(list, zip(small, large, strict=True)), case_ids=["a", "b"])  # type: ignore[call-overload]
    assert both["bone"] is not None
    assert 2.0 < both["bone"][2] / TRUE["bone"][2] < 3.0, "2.5 if both count alike, 3.4 if voxels did"

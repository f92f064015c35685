"""Baselines: range, shape, what each must keep, the pyramid's exact inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clinfuse.baselines import BASELINES, TRIVIAL
from clinfuse.baselines.laplacian import collapse, pyramid
from clinfuse.case import Case
from clinfuse.presets import load_presets

PRESET = load_presets()["balanced"]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_gives_a_volume_in_range(name: str, tiny_case: Case) -> None:
    before = tiny_case.anatomy.copy()
    fused = BASELINES[name](tiny_case, PRESET)
    assert fused.shape == tiny_case.shape and fused.dtype == np.float32
    assert np.isfinite(fused).all() and fused.min() >= 0 and fused.max() <= 1
    assert np.array_equal(before, tiny_case.anatomy)
    assert np.array_equal(fused, BASELINES[name](tiny_case, PRESET)), "not deterministic"


def test_closed_forms(tiny_case: Case) -> None:
    a, c = tiny_case.anatomy, tiny_case.companion
    fused = {name: BASELINES[name](tiny_case, PRESET) for name in TRIVIAL}
    assert np.allclose(fused["mean"], 0.5 * a + 0.5 * c)
    assert np.array_equal(fused["max"], np.maximum(a, c))
    assert np.array_equal(fused["mri"], a) and np.array_equal(fused["ct"], c)
    brain, bone = tiny_case.brain > 0, tiny_case.bone > 0
    assert np.array_equal(fused["hard_roi"][bone], c[bone])
    assert np.array_equal(fused["hard_roi"][brain & ~bone], a[brain & ~bone])


def test_a_result_is_no_view_of_the_case(tiny_case: Case) -> None:
    for name in ("mri", "ct"):
        BASELINES[name](tiny_case, PRESET)[:] = 0
    assert tiny_case.anatomy.any() and tiny_case.companion.any()


def test_pyramid_is_undone_exactly() -> None:
    image = torch.rand(2, 1, 37, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(collapse(pyramid(image, 3)), image, atol=1e-6)


@pytest.mark.parametrize("name", ["laplacian", "wavelet", "guided_filter", "mean", "max", "prior"])
def test_equal_sources_give_the_source(name: str, tiny_case: Case) -> None:
    from dataclasses import replace

    same = replace(tiny_case, companion=tiny_case.anatomy)
    np.testing.assert_allclose(BASELINES[name](same, PRESET), tiny_case.anatomy, atol=1e-6)


def test_prior_keeps_each_source_in_its_region(tiny_case: Case) -> None:
    fused = BASELINES["prior"](tiny_case, PRESET)
    bone = tiny_case.bone > 0
    assert np.abs(fused - tiny_case.companion)[bone].mean() < np.abs(fused - tiny_case.anatomy)[bone].mean()

"""Members' samples: slabs joined, slices drawn together, fewer members than asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clinfuse_serve.backend import Order, run_order
from clinfuse_serve.drawing import Ask, draw_together, fits_batch
from clinfuse_serve.parts import join, split

from clinfuse.case import Case
from clinfuse.pipeline import FusionPipeline


def test_slabs_joined_equal_the_whole(pipeline: FusionPipeline, tiny_case: Case) -> None:
    preset = pipeline.resolve_preset("balanced")
    order = Order(preset=preset, seed=3)
    whole = run_order(pipeline, tiny_case, 0, order)
    orders = [replace(order, slab=slab) for slab in ((0, 5), (5, 10), (10, 12))]
    joined = join([run_order(pipeline, tiny_case, 0, part) for part in orders])
    np.testing.assert_allclose(joined[0].fused, whole[0].fused, atol=1e-5)
    np.testing.assert_allclose(joined[0].variance, whole[0].variance, rtol=1e-4)
    assert joined[0].residual_energy == pytest.approx(whole[0].residual_energy, rel=1e-3)
    assert [part.slab for part in split(order, 40)] == [(0, 16), (16, 32), (32, 40)]
    assert [part.slab for part in split(replace(order, slab=(5, 6)), 40)] == [(5, 6)]


def test_slices_drawn_together_equal_those_drawn_alone(pipeline: FusionPipeline, tiny_case: Case) -> None:
    orders = [
        Order(preset=pipeline.resolve_preset(name), seed=seed, slab=(k, k + 1), steps=steps)
        for name, seed, k, steps in (("balanced", 1, 3, 2), ("stroke", 2, 7, 2), ("balanced", 1, 3, 1))
    ]
    asks = [Ask(pipeline, order.part_of(tiny_case), order) for order in orders]
    assert all(fits_batch(*ask) for ask in asks)
    assert not fits_batch(pipeline, tiny_case, orders[0])
    for drawn, order in zip(draw_together(asks, 1), orders, strict=True):
        alone = run_order(pipeline, tiny_case, 1, order)
        np.testing.assert_allclose(drawn[0].fused, alone[0].fused, atol=1e-5)
        assert (drawn[0].member, drawn[0].steps) == (1, order.steps)


def test_a_degraded_answer_is_less_sure_everywhere(pipeline: FusionPipeline, tiny_case: Case) -> None:
    order = Order(preset=pipeline.resolve_preset("balanced"), seed=3)
    drawn = [sample for member in (0, 2) for sample in run_order(pipeline, tiny_case, member, order)]
    whole, degraded = (pipeline.combine(drawn, tiny_case, "balanced", asked=n, seed=3) for n in (2, 3))
    assert degraded.info["degraded"] and not whole.info["degraded"]
    assert degraded.info["widened"] == pytest.approx(1.5**0.5) and whole.info["widened"] == 1.0
    assert (degraded.uncertainty >= whole.uncertainty).all()
    assert degraded.uncertainty.mean() > whole.uncertainty.mean()
    np.testing.assert_array_equal(degraded.fused, whole.fused)

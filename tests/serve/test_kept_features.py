"""What a member saw of a case is kept: used for the next preset, the same bytes as seeing anew, within its bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clinfuse_serve.backend import Order, run_order
from clinfuse_serve.drawing import Ask, draw_together
from clinfuse_serve.kept_features import KeptFeatures
from clinfuse_serve.limits import Limits
from clinfuse_serve.recent import Recent
from posting import Pair, Start, post

from clinfuse.case import Case
from clinfuse.pipeline import FusionPipeline

PRESETS = ("balanced", "stroke", "bone_tumor")


@pytest.fixture
def order(pipeline: FusionPipeline) -> Order:
    """All slices of a kept case."""
    return Order(preset=pipeline.resolve_preset("balanced"), seed=3, case="case1", draws=((0, 0), (1, 0)))


def drawn(pipeline: FusionPipeline, case: Case, order: Order, kept: KeptFeatures | None) -> list[bytes]:
    samples = run_order(pipeline, case, 1, order, kept=kept)
    return [getattr(s, name).tobytes() for s in samples for name in ("fused", "variance", "registration")]


def test_a_changed_preset_draws_from_what_was_seen(
    pipeline: FusionPipeline, tiny_case: Case, order: Order
) -> None:
    kept = KeptFeatures(64 << 20, 60)
    for turn, name in enumerate(PRESETS):
        wanted = replace(order, preset=pipeline.resolve_preset(name), seed=turn)
        assert drawn(pipeline, tiny_case, wanted, kept) == drawn(pipeline, tiny_case, wanted, None)
        assert kept.hits == turn
    jittered = replace(order, draws=((0, 0), (0, 1)))
    assert drawn(pipeline, tiny_case, jittered, kept) == drawn(pipeline, tiny_case, jittered, None)


def test_another_case_slab_member_version_or_precision_is_seen_anew(
    pipeline: FusionPipeline, tiny_case: Case, order: Order, other_model_dir: object
) -> None:
    kept = KeptFeatures(64 << 20, 60)
    run_order(pipeline, tiny_case, 1, order, kept=kept)
    other = FusionPipeline.from_pretrained(str(other_model_dir))
    run_order(other, tiny_case, 1, order, kept=kept)
    run_order(pipeline, tiny_case, 2, order, kept=kept)
    run_order(pipeline, tiny_case, 1, replace(order, case="case2"), kept=kept)
    run_order(pipeline, tiny_case, 1, replace(order, slab=(3, 5)), kept=kept)
    run_order(pipeline, tiny_case, 1, replace(order, case=""), kept=kept)
    run_order(replace(pipeline, precision="bfloat16"), tiny_case, 1, order, kept=kept)
    assert kept.hits == 0
    run_order(pipeline, tiny_case, 1, order, kept=kept)
    assert kept.hits == 1


def test_a_volume_too_large_for_all_keeps_the_slice_in_view(
    pipeline: FusionPipeline, tiny_case: Case, order: Order
) -> None:
    one = pipeline.encode(tiny_case.slices(0, 1), 1).nbytes
    kept = KeptFeatures(int(3.5 * one), 60)
    for slab in ((5, 6), (0, 4), (4, 8), (8, 12), (5, 6)):
        run_order(pipeline, tiny_case, 1, replace(order, slab=slab), kept=kept)
    assert kept.hits == 1 and kept.bytes == one
    for k in range(8):
        run_order(pipeline, tiny_case, 1, replace(order, slab=(k, k + 1)), kept=kept)
    assert kept.bytes == 3 * one
    nothing = KeptFeatures(0, 60)
    run_order(pipeline, tiny_case, 1, order, kept=nothing)
    assert nothing.bytes == 0


def test_slices_of_one_batch_use_it_too(pipeline: FusionPipeline, tiny_case: Case, order: Order) -> None:
    kept = KeptFeatures(64 << 20, 60)
    asks = [
        Ask(pipeline, tiny_case.slices(k, k + 1), replace(order, slab=(k, k + 1), draws=((0, 0),)))
        for k in (2, 6)
    ]
    anew, first, again = (draw_together(asks, 0, how) for how in (None, kept, kept))
    assert kept.hits == 2
    for one, two, three in zip(anew, first, again, strict=True):
        np.testing.assert_array_equal(one[0].fused, two[0].fused)
        np.testing.assert_array_equal(one[0].fused, three[0].fused)


def test_the_idle_are_forgotten() -> None:
    now = [0.0]
    recent: Recent[str] = Recent(10, 5, clock=lambda: now[0])
    recent.put("a", "x", 4)
    now[0] = 4
    assert recent.get("a") == "x"
    now[0] = 8
    recent.put("b", "y", 4)
    assert recent.bytes == 8
    now[0] = 10
    assert recent.get("a") is None and recent.bytes == 4 and len(recent) == 1


def test_replies_are_the_same_bytes_with_and_without(local_service: Start, nifti_pair: Pair) -> None:
    replies = []
    for limits in (Limits(), Limits(features_bytes=0)):
        url = local_service(limits)
        token = post(url, nifti_pair, {"output": "json"}).headers["x-clinfuse-case"]
        wanted = [{"case": token, "preset": name, "seed": 5, "compress": False} for name in PRESETS]
        wanted += [{**params, "slab": [4, 5]} for params in wanted]
        replies.append([post(url, {}, params).content for params in wanted])
    assert replies[0] == replies[1] and len(set(replies[0])) == 6

"""bfloat16 is inside the networks, and F stays within what is promised; float32 stays what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import make
from torch import nn

import clinfuse
from clinfuse.case import Case
from clinfuse.errors import ConfigError
from clinfuse.method.precision import GUIDED_TOLERANCE, MEAN_TOLERANCE, TOLERANCE, at_precision
from clinfuse.metrics.roi import roi_ssim
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training.effort import Effort

RELEASED = Path(clinfuse.__file__).parent / "released"
DRAWN = ("fused", "variance", "registration")
SSIM_TOLERANCE = 0.002


def dtypes(network: nn.Module) -> list[torch.dtype]:
    """Of every answer of a network's first layer and of the network itself, from now on."""
    seen: list[torch.dtype] = []
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d))]
    layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    return seen


@pytest.mark.parametrize("options", [{}, {"guided": True}], ids=["as it is", "guided by a lesion"])
def test_the_released_model_keeps_its_promise(tiny_case: Case, options: dict[str, Any]) -> None:
    """A small case with all three regions, every member; uncertainty, too, on the whole."""
    slab = tiny_case.slices(3, 9)
    exact = FusionPipeline.from_pretrained(RELEASED)
    rough = FusionPipeline.from_pretrained(RELEASED, precision="bfloat16")
    most = GUIDED_TOLERANCE if options else TOLERANCE
    for preset in ("balanced", "bone_tumor"):
        one, other = (pipeline(slab, preset, seed=3, **options) for pipeline in (exact, rough))
        change = np.abs(one.fused - other.fused)
        assert 0 < change.max() <= most and change.mean() <= MEAN_TOLERANCE
        assert np.abs(one.uncertainty - other.uncertainty).mean() <= 0.005
        for image, mask in ((slab.anatomy, slab.brain), (slab.companion, slab.bone)):
            scores = [roi_ssim(result.fused, image, mask) for result in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=SSIM_TOLERANCE)
        assert (one.info["precision"], other.info["precision"]) == ("float32", "bfloat16")


def test_one_precision_leaves_the_other_as_it_was(tiny_case: Case) -> None:
    slab, preset = tiny_case.slices(4, 7), load_presets()["balanced"].changed(steps=3)
    exact = make("teacher", members=1)
    before = exact.sample_member(slab, 0, preset)
    rough = replace(exact, precision="bfloat16")
    between = rough.sample_member(slab, 0, preset)
    after = exact.sample_member(slab, 0, preset)
    back = replace(rough, precision="float32").sample_member(slab, 0, preset)
    for name in DRAWN:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        np.testing.assert_array_equal(getattr(back, name), getattr(before, name))
    assert not np.array_equal(between.fused, before.fused)
    assert (
        rough.members[0] is exact.members[0] and at_precision(exact.members[0], "float32") is exact.members[0]
    )


@pytest.mark.parametrize(("precision", "inside"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_every_network_and_nothing_else_is_at_that_precision(
    tiny_case: Case, precision: str, inside: torch.dtype
) -> None:
    """Encoders, U-Net and lesion head inside; prior, latents, estimates and the guided change around them are not."""
    pipeline = replace(make("teacher", members=1), precision=precision)
    member, head = pipeline.members[0], pipeline.lesion_head
    assert head is not None
    networks = (member.encode_anatomy, member.encode_companion, member.unet, head.net)
    seen = [dtypes(network) for network in networks]
    features = pipeline.encode(tiny_case.slices(4, 7), 0)
    assert {image.dtype for image in features.parts[0].seen.images} == {torch.float32}
    assert features.parts[0].seen.sources.painted.dtype == torch.float32
    drawn = pipeline.sample_member(
        tiny_case.slices(4, 7), 0, load_presets()["balanced"].changed(steps=2), features=features
    )
    assert {getattr(drawn, name).dtype for name in DRAWN} == {np.dtype("float32")}
    assert all(kinds and set(kinds) == {inside} for kinds in seen)
    assert {parameter.dtype for parameter in member.parameters()} == {torch.float32}


def test_gradients_at_bfloat16_are_float32_and_point_the_same_way() -> None:
    pipeline = make(members=1)
    assert pipeline.lesion_head is not None
    image = torch.rand((1, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    grads = []
    for precision in ("float32", "bfloat16"):
        point = image.clone().requires_grad_()
        at_precision(pipeline.lesion_head, precision).probability(point).sum().backward()
        assert point.grad is not None and point.grad.dtype == torch.float32
        grads.append(point.grad.flatten())
    assert not torch.equal(*grads)
    assert float(torch.cosine_similarity(*grads, dim=0)) > 0.99


def test_alone_or_in_a_batch_the_same_within_the_promise(tiny_case: Case) -> None:
    pipeline = replace(make(), precision="bfloat16")
    preset = load_presets()["balanced"]
    cases = [tiny_case.slices(k, k + 1) for k in (4, 6)]
    together = pipeline.sample_together([(case, preset, 5) for case in cases], 1)
    for case, batched in zip(cases, together, strict=True):
        alone = pipeline.sample_member(case, 1, preset, seed=5)
        np.testing.assert_allclose(batched.fused, alone.fused, atol=TOLERANCE)
        assert batched.precision == alone.precision == "bfloat16"


def test_a_folder_keeps_the_model_and_not_the_precision(tmp_path: Path) -> None:
    pipeline = make()
    folder = replace(pipeline, precision="bfloat16").save_pretrained(tmp_path / "model")
    again = FusionPipeline.from_pretrained(folder)
    assert again.precision == "float32"
    assert again.model_hash == FusionPipeline.from_pretrained(folder, precision="bfloat16").model_hash
    for name, value in pipeline.members[1].state_dict().items():
        assert torch.equal(again.members[1].state_dict()[name], value)


@pytest.mark.parametrize("wrong", ["float16", "bf16", ""])
def test_no_other_precision(wrong: str) -> None:
    for refused in (
        lambda: FusionPipeline.from_pretrained(RELEASED, precision=wrong),
        lambda: Effort(precision=wrong),
    ):
        with pytest.raises(ConfigError, match="float32 or bfloat16"):
            refused()

"""What saves time or memory changes nothing else: accumulation, averaging, precision, checkpointing, layout."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import Denoiser, DenoiserConfig
from clinfuse.method.inputs import Inputs
from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig
from clinfuse.training import Effort, TrainConfig, TrainState, build_denoiser, fit, recipe
from clinfuse.training.effort import prepared, split
from clinfuse.training.loop import WARM_UP_STEPS, rate
from clinfuse.training.state import best_weights

Batch = dict[str, Tensor]


def regression(module: nn.Module, batch: Batch, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    value = (module(batch["x"]) - batch["y"]).square().mean()
    return value, {"loss": float(value.detach())}


def line(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 3, generator=generator)
    return {"x": x, "y": x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1}


def perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def trained(effort: Effort, steps: int = 12, **options: Any) -> dict[str, Tensor]:
    module = perceptron()
    fit(module, regression, line, steps=steps, learning_rate=0.05, effort=effort, **options)
    return module.state_dict()


def test_two_parts_of_two_learn_what_a_batch_of_four_does() -> None:
    whole, parts = trained(Effort()), trained(Effort(accumulate=2))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=0)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate"):
        split(line(0), 3)
    with pytest.raises(ConfigError, match="multiple of 3"):
        recipe("cpu-debug", **{"effort.accumulate": 3})


def test_the_average_is_the_closed_form_and_survives_a_checkpoint(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def keep(step: int, _: dict[str, float], state: TrainState) -> None:
        seen.append({name: value.clone() for name, value in state.module.state_dict().items()})
        if step == 5:
            state.save(tmp_path)

    effort = Effort(average=0.8)
    found = trained(effort, on_step=keep)
    expected = perceptron().state_dict()
    for n, weights in enumerate(seen):
        d = min(0.8, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * value for name, value in weights.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    assert not torch.equal(found["0.weight"], seen[-1]["0.weight"])
    for name, value in trained(effort, start=tmp_path).items():
        assert torch.equal(value, found[name])
    kept = best_weights(tmp_path)
    assert not torch.equal(kept["0.weight"], seen[4]["0.weight"])


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    assert [rate(n, 110, 1.0) for n in range(WARM_UP_STEPS)] == pytest.approx([n / 10 for n in range(1, 11)])
    for n in (10, 35, 60, 110):
        expected = 0.05 + 0.475 * (1 + math.cos(math.pi * (n - 10) / 100))
        assert rate(n, 110, 1.0) == pytest.approx(expected)


def volumes() -> tuple[Denoiser, Callable[[], tuple[Tensor, list[Tensor]]]]:
    """A 3D denoiser with weights that are not zero, and its output with the gradients of a scalar of it."""
    size = DenoiserConfig(spatial_dims=3, channels=(8, 16), encoder_channels=4)
    denoiser = build_denoiser(
        TrainConfig(
            crop=(16, 16, 16), denoiser=size, lesion_head=LesionHeadConfig(spatial_dims=3, channels=(4, 8))
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    shape = (1, 1, 16, 16, 16)
    images = [torch.rand(shape, generator=generator) for _ in range(2)]
    masks = (torch.rand((1, 3, 16, 16, 16), generator=generator) < 0.3).float()
    inputs = Inputs(*images, masks, torch.full((1, 6), 1 / 3), torch.ones(1))
    noise = torch.randn((1, 8, 8, 8, 8), generator=generator)

    def run() -> tuple[Tensor, list[Tensor]]:
        denoiser.zero_grad(set_to_none=True)
        estimate = denoiser(noise, torch.tensor([500]), inputs)
        (estimate.x_0.square().mean() + estimate.log_variance.mean()).backward()
        grads = [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]
        return estimate.x_0.detach(), grads

    return denoiser, run


def kept_floats(run: Callable[[], Any]) -> int:
    """Numbers that autograd keeps for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        run()
    return sum(sizes)


def test_checkpointing_keeps_less_and_gives_equal_gradients() -> None:
    denoiser, run = volumes()
    (plain, grads), much = run(), kept_floats(run)
    with prepared(denoiser, Effort(checkpointing=True), "cpu"):
        (again, others), less = run(), kept_floats(run)
    assert torch.equal(plain, again) and len(grads) == len(others)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert less < 0.8 * much
    assert not any("forward" in module.__dict__ for module in denoiser.modules())


def test_channels_last_changes_the_layout_only() -> None:
    denoiser, run = volumes()
    plain, grads = run()
    names = list(denoiser.state_dict())
    with prepared(denoiser, Effort(channels_last=True), "cpu"):
        kernel = denoiser.encode_anatomy[0].weight  # type: ignore[index]
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
        again, others = run()
        assert list(denoiser.state_dict()) == names
    torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-4)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert all(parameter.is_contiguous() for parameter in denoiser.parameters())


def test_bfloat16_is_inside_the_networks_only() -> None:
    denoiser, run = volumes()
    plain, grads = run()
    inside: list[torch.dtype] = []
    hook = denoiser.unet.conv_in.register_forward_hook(lambda _m, _i, out: inside.append(out.dtype))
    with prepared(denoiser, Effort(precision="bfloat16"), "cpu"):
        again, others = run()
    hook.remove()
    assert inside == [torch.bfloat16] and again.dtype == torch.float32
    assert {grad.dtype for grad in others} == {torch.float32}
    assert 0 < float((plain - again).abs().max()) < 0.05
    whole, parts = torch.cat([g.flatten() for g in grads]), torch.cat([g.flatten() for g in others])
    assert float(torch.cosine_similarity(whole, parts, dim=0)) > 0.99


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")
def test_compiling_is_done_and_changes_nothing() -> None:
    head = LesionHead(LesionHeadConfig(channels=(4, 8))).eval()
    image = torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    plain, names = head(image), list(head.state_dict())
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    with prepared(head, Effort(compile=True), "cpu"):
        torch.testing.assert_close(head(image), plain, atol=1e-5, rtol=0)
        assert counted["unique_graphs"] == before + 1 and list(head.state_dict()) == names
        head(image).sum().backward()
    assert torch.equal(head(image), plain) and counted["unique_graphs"] == before + 1


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    module, start = perceptron(), perceptron().state_dict()

    def cusp(runner: nn.Module, batch: Batch, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return (runner(batch["x"]) * 0).abs().sqrt().sum(), {}  # 0, with an infinite slope

    with pytest.raises(FloatingPointError, match="gradient is not finite at step 0"):
        fit(module, cusp, line, steps=1, learning_rate=0.1)
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())


def test_a_share_of_the_steps_sees_wide_flat_crops() -> None:
    config = recipe("gpu-3d", seed=3)
    crops = [config.crop_at(step) for step in range(2000)]
    assert set(crops) == {config.crop, config.slab_crop}
    assert crops.count(config.slab_crop) / 2000 == pytest.approx(config.slab_share, abs=0.03)
    assert crops == [config.crop_at(step) for step in range(2000)]
    assert {recipe("gpu-2d").crop_at(step) for step in range(50)} == {recipe("gpu-2d").crop}
    with pytest.raises(ConfigError, match="slab_crop"):
        recipe("gpu-3d", slab_crop=(15, 160, 160))
    with pytest.raises(ConfigError, match="slab_share"):
        recipe("gpu-2d", slab_share=0.5, slab_crop=(64, 64))

"""The finish: near what was sampled, its bone the CT, with less seam; the convex sum's minimum; no last bit grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from clinfuse.method import finish
from clinfuse.method.filters import largest_within
from clinfuse.method.finish import LESION_REACH, NEAR, STEPS, finished
from clinfuse.method.inputs import Inputs
from clinfuse.method.refine import border
from clinfuse.method.seam_loss import gradient_magnitude


def pasted(size: int = 32, dims: int = 2, seed: int = 1, lesion: bool = False) -> tuple[Inputs, Tensor]:
    """Bright bone beside dark MRI and grey CT, pasted hard: a border steeper than both sources'."""
    shape = (1, 1, *(size,) * (dims - 1), size)
    texture = 0.02 * torch.rand((2, *shape), generator=torch.Generator().manual_seed(seed))
    x = torch.arange(size).expand(shape)
    brain, bone = (x < size // 2).float(), (x >= size // 2 + 2).float()
    anatomy, companion = 0.1 + texture[0], 0.5 + 0.45 * bone + texture[1]
    masks = [brain, bone, torch.zeros_like(brain)]
    if lesion:
        masks[2][..., size // 2 - 2 : size // 2, size // 2 - 2 : size // 2] = 1
    inputs = Inputs(anatomy, companion, torch.cat(masks, dim=1), torch.full((1, 6), 1 / 3), torch.ones(1))
    return inputs, torch.where(x < size // 2 + 1, anatomy, companion)


def excess(image: Tensor, inputs: Inputs) -> Tensor:
    limit = torch.maximum(gradient_magnitude(inputs.anatomy), gradient_magnitude(inputs.companion))
    band = torch.maximum(*(border(mask) for mask in inputs.rois[:2]))
    return band * (gradient_magnitude(image) - limit).clamp_min(0)


def cost(image: Tensor, inputs: Inputs, sampled: Tensor, distance: Tensor) -> Tensor:
    """The finish's sum, told how far the image is from the companion."""
    bone = inputs.rois[1]
    weight = finish.BONE_WEIGHT * bone + 1 - bone
    near = (image - sampled).square() + 2 * NEAR * bone * distance
    return (weight * near).sum() + finish.SEAM_WEIGHT * excess(image, inputs).square().sum()


@pytest.mark.parametrize("dims", [2, 3])
def test_it_takes_most_of_the_seam_and_stays_near(dims: int) -> None:
    inputs, sampled = pasted(16, dims)
    done = finished(sampled, inputs)
    assert float(excess(done, inputs).sum()) < 0.3 * float(excess(sampled, inputs).sum())
    far = torch.ones_like(sampled)
    far[..., 3:14] = 0
    assert torch.equal(done[far > 0], sampled[far > 0]), "nothing but the border is touched"
    assert torch.equal(finished(sampled, inputs, steps=0), sampled)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_the_borders_do_not_reach_is_left_out_of_the_work_alone(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, sampled = pasted(32, dims)
    band = torch.maximum(*(border(mask) for mask in inputs.rois[:2]))
    box = finish._box(band)
    assert band[box].sum() == band.sum() and band[box].numel() < 0.6 * band.numel()
    done = finished(sampled, inputs)
    monkeypatch.setattr(finish, "_box", lambda _: ...)
    torch.testing.assert_close(done, finished(sampled, inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_bone_that_nearly_is_the_companion_becomes_it_and_the_rest_comes_nearer(dims: int) -> None:
    inputs, _ = pasted(16, dims)
    companion, bone = inputs.companion, inputs.rois[1] > 0
    gap = 3 * NEAR * (2 * torch.rand(companion.shape, generator=torch.Generator().manual_seed(4)) - 1)
    sampled = torch.where(bone, companion + gap, inputs.anatomy).clamp(0, 1)
    done = finished(sampled, inputs)
    bone[..., :14] = False
    gap = (sampled - companion)[bone]
    left = (done - companion)[bone]
    torch.testing.assert_close(left, gap.sign() * (gap.abs() - NEAR).clamp_min(0), atol=1e-6, rtol=0)
    assert float((left == 0).float().mean()) > 0.25, "exactly: a flat companion's one grey level"
    assert torch.equal(done[..., :3], sampled[..., :3]), "the brain stays as it was sampled"


def test_where_no_border_is_steeper_and_bone_is_the_companion_nothing_changes() -> None:
    inputs, _ = pasted()
    torch.testing.assert_close(finished(inputs.companion, inputs), inputs.companion, atol=1e-6, rtol=0)
    brain = torch.cat([inputs.rois[0], torch.zeros_like(inputs.masks[:, 1:])], dim=1)
    boneless = inputs._replace(masks=brain)
    torch.testing.assert_close(finished(inputs.anatomy, boneless), inputs.anatomy, atol=1e-6, rtol=0)


def test_its_end_is_the_minimum_that_another_method_finds() -> None:
    inputs, pair = pasted(12)
    sampled = (pair + 0.03 * torch.sin(7 * torch.arange(12))).clamp(0, 1)
    companion = inputs.companion

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Of how far F is above the companion and how far below, so that the sum is smooth."""
        parts = torch.tensor(flat, dtype=torch.float32).reshape(2, *sampled.shape).requires_grad_()
        value = cost(companion + parts[0] - parts[1], inputs, sampled, parts.sum(dim=0))
        (slope,) = torch.autograd.grad(value, parts)
        return float(value.detach()), slope.double().flatten().numpy()

    room = [(0, float(most)) for part in (1 - companion, companion) for most in part.flatten()]
    gap = sampled - companion
    start = torch.stack([gap.clamp_min(0), (-gap).clamp_min(0)]).flatten().numpy()
    other = minimize(function, start, jac=True, method="L-BFGS-B", bounds=room)

    def after(steps: int) -> float:
        done = finished(sampled, inputs, steps)
        return float(cost(done, inputs, sampled, (done - companion).abs()))

    assert abs(after(200) - other.fun) < 0.02 * (after(0) - other.fun)
    assert after(STEPS) - other.fun < 0.1 * (after(0) - other.fun), "so few steps are near it"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_lesion_and_its_surroundings_stay_as_they_were_sampled(dims: int) -> None:
    inputs, sampled = pasted(32 if dims == 2 else 16, dims, lesion=True)
    done = finished(sampled, inputs)
    assert torch.equal(done[inputs.rois[2] > 0], sampled[inputs.rois[2] > 0])
    if dims == 2:
        assert float((done - sampled)[..., : 14 - LESION_REACH - 3, :].abs().max()) > 0.01


def test_last_bits_do_not_grow_and_neighbours_do_not_matter() -> None:
    parts = [pasted(seed=seed) for seed in range(6)]
    inputs = Inputs(*(torch.cat(each) for each in zip(*(one for one, _ in parts), strict=True)))
    together = finished(torch.cat([sampled for _, sampled in parts]), inputs)
    for number, (own, sampled) in enumerate(parts):
        alone = finished(sampled, own)
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-6, rtol=0)
        noise = 1e-6 * torch.rand(sampled.shape, generator=torch.Generator().manual_seed(number))
        assert float((finished(sampled + noise, own) - alone).abs().max()) < 1e-5


@pytest.mark.parametrize("voxels", [1, 2, 6])
@pytest.mark.parametrize("shape", [(2, 1, 17, 12), (1, 2, 5, 9, 8)])
def test_the_largest_value_near_by_is_that_of_pooling(shape: tuple[int, ...], voxels: int) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    pool = torch.nn.functional.max_pool2d if len(shape) == 4 else torch.nn.functional.max_pool3d
    assert torch.equal(largest_within(image, voxels), pool(image, 2 * voxels + 1, 1, voxels))

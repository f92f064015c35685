"""The finish: near what was sampled, with less seam, the convex sum's own minimum, and no last bit that grows."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from clinfuse.method import finish
from clinfuse.method.filters import largest_within
from clinfuse.method.finish import LESION_REACH, finished
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


def cost(image: Tensor, inputs: Inputs, sampled: Tensor) -> Tensor:
    bone = inputs.rois[1]
    weight = finish.BONE_WEIGHT * bone + 1 - bone
    near = (weight * (image - sampled).square()).sum()
    return near + finish.SEAM_WEIGHT * excess(image, inputs).square().sum()


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


def test_where_no_border_is_steeper_nothing_changes() -> None:
    inputs, _ = pasted()
    for source in (inputs.anatomy, inputs.companion):
        torch.testing.assert_close(finished(source, inputs), source, atol=1e-6, rtol=0)


def test_its_end_is_the_minimum_that_another_method_finds() -> None:
    inputs, sampled = pasted(12)

    def function(flat: object) -> tuple[float, object]:
        image = torch.tensor(flat, dtype=torch.float32).reshape(sampled.shape).requires_grad_()
        value = cost(image, inputs, sampled)
        (slope,) = torch.autograd.grad(value, image)
        return float(value), slope.double().flatten().numpy()

    bounds = [(0, 1)] * sampled.numel()
    other = minimize(function, sampled.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
    start, end = (float(cost(finished(sampled, inputs, steps), inputs, sampled)) for steps in (0, 200))
    assert abs(end - other.fun) < 0.02 * (start - other.fun)
    soon = float(cost(finished(sampled, inputs), inputs, sampled))
    assert soon - other.fun < 0.1 * (start - other.fun), "so few steps are near it"


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

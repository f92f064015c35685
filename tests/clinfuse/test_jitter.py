"""Jitter: closed forms for pure motions, physical millimetres, replay, smoothness and gradients."""

from __future__ import annotations

import json

import pytest
import torch

from clinfuse.errors import ConfigError, GeometryError
from clinfuse.method.jitter import CONTROL_POINTS, JitterConfig, Warp, apply, displacement, draw

GRIDS = [((28, 32), (1.5, 0.8)), ((12, 20, 18), (3.0, 1.5, 2.0))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape: tuple[int, ...], batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *shape, generator=generator(9))


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
def test_whole_voxel_translation_is_a_roll(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    steps = (2, -3, 1)[: len(shape)]
    warp = Warp(
        translation_mm=tuple(n * s for n, s in zip(steps, spacing, strict=True)),
        rotation_deg=(0.0,) * (1 if len(shape) == 2 else 3),
    )
    image = noise(shape, batch=2)
    for mode in ("bilinear", "nearest"):
        rolled = torch.roll(image, steps, dims=tuple(range(2, image.ndim)))
        moved = apply(warp, image, spacing, mode=mode)
        for axis in range(2, image.ndim):
            n = image.shape[axis] - 6
            moved, rolled = moved.narrow(axis, 3, n), rolled.narrow(axis, 3, n)
        torch.testing.assert_close(moved, rolled, atol=1e-5, rtol=0)


def test_half_a_voxel_averages_two_neighbours() -> None:
    image = noise((10, 11))
    moved = apply(Warp(translation_mm=(1.0, 0.0), rotation_deg=(0.0,)), image, (2.0, 1.0))
    torch.testing.assert_close(
        moved[..., 1:, :], 0.5 * (image[..., 1:, :] + image[..., :-1, :]), atol=1e-5, rtol=0
    )


def test_a_quarter_turn_in_the_plane() -> None:
    image = noise((16, 16))
    moved = apply(Warp(translation_mm=(0.0, 0.0), rotation_deg=(90.0,)), image, (1.3, 1.3))
    torch.testing.assert_close(moved, torch.rot90(image, -1, dims=(3, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("axis", "plane"), [(0, (3, 4)), (1, (4, 2)), (2, (2, 3))])
def test_a_quarter_turn_about_each_axis(axis: int, plane: tuple[int, int]) -> None:
    image = noise((9, 9, 9))
    angles = tuple(90.0 if i == axis else 0.0 for i in range(3))
    moved = apply(Warp(translation_mm=(0.0,) * 3, rotation_deg=angles), image, (2.0, 2.0, 2.0))
    torch.testing.assert_close(moved, torch.rot90(image, 1, dims=plane), atol=1e-4, rtol=0)


def test_a_turn_on_an_anisotropic_grid_keeps_millimetres() -> None:
    """A point 12 mm along the first axis turns by 90° to 12 mm along the second, whatever the voxels."""
    spacing = (3.0, 1.5)
    image = torch.zeros(1, 1, 17, 33)
    image[0, 0, 8 + 4, 16] = 1
    moved = apply(Warp(translation_mm=(0.0, 0.0), rotation_deg=(90.0,)), image, spacing, padding="zeros")
    where = torch.nonzero(moved[0, 0] > 0.5).tolist()
    assert where == [[8, 16 + 8]]


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
def test_rigid_displacement_preserves_distances(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    warp = draw(JitterConfig(translation_mm=4, rotation_deg=20, elastic_mm=0), generator(1), len(shape))
    d = displacement(warp, shape, spacing).double()
    axes = [(torch.arange(n).double() - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    before, after = x.flatten(1).T, (x + d).flatten(1).T
    pick = torch.randperm(len(before), generator=generator())[:40]
    torch.testing.assert_close(
        torch.cdist(after[pick], after[pick]), torch.cdist(before[pick], before[pick]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_zero_amplitude_is_the_identity_and_returns_the_image(dims: int) -> None:
    shape, spacing = GRIDS[dims - 2]
    warp = draw(JitterConfig(translation_mm=0, rotation_deg=0, elastic_mm=0), generator(), dims)
    assert warp.is_identity
    image = noise(shape)
    assert torch.equal(apply(warp, image, spacing), image)
    assert not displacement(warp, shape, spacing).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_stored_warp_replays_exactly(dims: int) -> None:
    shape, spacing = GRIDS[dims - 2]
    warp = draw(JitterConfig(), generator(3), dims)
    again = Warp.from_dict(json.loads(json.dumps(warp.to_dict())))
    assert again == warp
    assert draw(JitterConfig(), generator(3), dims) == warp
    assert draw(JitterConfig(), generator(4), dims) != warp
    image = noise(shape)
    assert torch.equal(apply(again, image, spacing), apply(warp, image, spacing))
    assert not torch.equal(apply(warp, image, spacing), image)


def test_the_same_state_gives_the_same_directions_at_any_amplitude() -> None:
    config = JitterConfig()
    one, two = draw(config, generator(5), 3), draw(config.scaled(2), generator(5), 3)
    assert two.translation_mm == pytest.approx([2 * v for v in one.translation_mm])
    assert two.rotation_deg == pytest.approx([2 * v for v in one.rotation_deg])
    assert two.elastic_mm == pytest.approx([2 * v for v in one.elastic_mm])
    first, second = generator(5), generator(5)
    draw(config, first, 3)
    draw(config.scaled(0), second, 3)
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize("dims", [2, 3])
def test_draws_stay_within_their_amplitudes(dims: int) -> None:
    config, source = JitterConfig(translation_mm=2, rotation_deg=3, elastic_mm=1), generator(6)
    shape, spacing = GRIDS[dims - 2]
    for _ in range(20):
        warp = draw(config, source, dims)
        assert max(map(abs, warp.translation_mm)) <= 2
        assert max(map(abs, warp.rotation_deg)) <= 3
        elastic = Warp(
            translation_mm=(0.0,) * dims,
            rotation_deg=(0.0,) * len(warp.rotation_deg),
            elastic_mm=warp.elastic_mm,
            elastic_scale_mm=warp.elastic_scale_mm,
        )
        assert displacement(elastic, shape, spacing).norm(dim=0).max() <= 1.05


@pytest.mark.parametrize("dims", [2, 3])
def test_the_field_never_folds_at_the_largest_stretch(dims: int) -> None:
    config = JitterConfig(translation_mm=5, rotation_deg=10, elastic_mm=5, elastic_scale_mm=25)
    shape, spacing = ((64, 60), (2.0, 2.5)) if dims == 2 else ((24, 28, 26), (5.0, 4.0, 4.5))
    source = generator(7)
    for _ in range(15):
        d = displacement(draw(config, source, dims), shape, spacing)
        slopes = [torch.stack(torch.gradient(part, spacing=list(spacing))) for part in d]
        jacobian = torch.stack(slopes).movedim((0, 1), (-2, -1)) + torch.eye(dims)
        assert torch.linalg.det(jacobian).min() > 0.4


def test_the_elastic_field_is_a_cubic_spline_of_its_control_points() -> None:
    """Equal coefficients move everything alike; one alone moves its own place by (2/3)² of its value."""
    lattice = torch.zeros(2, CONTROL_POINTS, CONTROL_POINTS)
    lattice[0] = 1.25
    rigid = {"translation_mm": (0.0, 0.0), "rotation_deg": (0.0,)}
    constant = Warp(**rigid, elastic_mm=tuple(lattice.flatten().tolist()), elastic_scale_mm=10)
    torch.testing.assert_close(
        displacement(constant, (9, 9), (2.0, 2.0))[0], torch.full((9, 9), -1.25), atol=1e-5, rtol=0
    )
    lattice = torch.zeros(2, CONTROL_POINTS, CONTROL_POINTS)
    lattice[1, 0, 0] = 1
    single = Warp(**rigid, elastic_mm=tuple(lattice.flatten().tolist()), elastic_scale_mm=10)
    d = displacement(single, (21, 21), (2.0, 2.0))
    assert d[1, 10, 10].item() == pytest.approx(-4 / 9, abs=1e-6)
    assert d[1, 15, 10].item() == pytest.approx(-1 / 9, abs=1e-6)
    assert d[1, 0, 0].item() == pytest.approx(0, abs=1e-6)
    assert not d[0].any()


def test_gradients_in_the_image_agree_with_finite_differences() -> None:
    warp = draw(JitterConfig(), generator(8), 2)
    image = torch.rand(1, 1, 6, 5, dtype=torch.float64, generator=generator()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(warp, x, (1.0, 2.0)), (image,))


def test_types_and_batch_are_kept() -> None:
    warp = draw(JitterConfig(), generator(8), 3)
    mask = (noise((8, 9, 10), batch=2) > 0.5).to(torch.uint8)
    moved = apply(warp, mask, (2.0, 1.0, 1.5), mode="nearest")
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1}
    image = noise((8, 9, 10), batch=2)
    together = apply(warp, image, (2.0, 1.0, 1.5))
    alone = apply(warp, image[1], (2.0, 1.0, 1.5))
    assert alone.shape == (1, 8, 9, 10)
    torch.testing.assert_close(together[1], alone)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 <= translation_mm <= 50"):
        JitterConfig(translation_mm=-1)
    with pytest.raises(ConfigError, match="rotation_deg"):
        JitterConfig(rotation_deg=float("nan"))
    with pytest.raises(ConfigError, match="might fold"):
        JitterConfig(elastic_mm=6, elastic_scale_mm=25)
    with pytest.raises(GeometryError, match="do not belong together"):
        Warp(translation_mm=(0.0, 0.0), rotation_deg=(0.0, 0.0, 0.0))
    warp = Warp(translation_mm=(1.0, 0.0), rotation_deg=(0.0,))
    with pytest.raises(GeometryError, match="does not fit"):
        apply(warp, torch.zeros(1, 1, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="does not fit"):
        apply(warp, torch.zeros(4, 4), (1.0, 1.0))
    with pytest.raises(ConfigError, match="unknown way"):
        apply(warp, torch.zeros(1, 1, 4, 4), (1.0, 1.0), mode="cubic")

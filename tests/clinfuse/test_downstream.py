"""The downstream probe: it learns what can be seen, equally for every input, and measures in millimetres."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clinfuse.errors import ConfigError, InputError
from clinfuse.evaluation import downstream
from clinfuse.evaluation.downstream import (
    Probe,
    ProbeCase,
    ProbeConfig,
    augmented,
    heat_maps,
    padded_slice,
    train_probe,
    with_places,
)
from clinfuse.evaluation.places import Point, apart_mm, centre, inside, located

SPACING = (3.0, 1.5, 2.0)


def scene(seed: int, *, visible: bool = True, channels: int = 1, side: int = 24) -> ProbeCase:
    """A bright ball, the lesion, and a dark dot, the landmark, in a grey box; invisible both if asked."""
    rng = np.random.default_rng(seed)
    shape = (8, side, 24)
    grids = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)], indexing="ij")

    def ball(at: Point, radius: float) -> np.ndarray:
        return sum((g - a * s) ** 2 for g, a, s in zip(grids, at, SPACING, strict=True)) < radius**2

    where = (float(rng.integers(2, 6)), float(rng.integers(5, 12)), float(rng.integers(6, 17)))
    dot = (4.0, float(rng.integers(16, 20)), float(rng.integers(8, 15)))
    lesion = ball(where, 7)
    image = np.full(shape, 0.4) + rng.normal(0, 0.02, shape)
    if visible:
        image = image + 0.4 * lesion - 0.35 * ball(dot, 4)
    volume = np.clip(image, 0, 1).astype(np.float32)
    return ProbeCase(
        image=np.stack([volume] * channels),
        lesion=lesion.astype(np.uint8),
        spacing=SPACING,
        landmarks={"dot": dot},
    )


def dice_and_error(visible: bool) -> tuple[float, float]:
    config = ProbeConfig(steps=120, batch_size=6, sigma_mm=3.0, channels=(8, 16, 32))
    probe = train_probe([scene(k, visible=visible) for k in range(6)], config)
    case = scene(99, visible=visible)
    maps = probe.maps(case)
    found = maps[0] >= 0.5
    dice = 2 * (found & (case.lesion > 0)).sum() / max(1, found.sum() + case.lesion.sum())
    place = located(maps[1:], probe.names, SPACING, config.sigma_mm)["dot"]
    return float(dice), apart_mm(place, case.landmarks["dot"], SPACING)


def test_it_finds_what_is_in_the_image_and_not_what_is_not() -> None:
    torch.set_num_threads(1)
    dice, error = dice_and_error(visible=True)
    assert dice > 0.8 and error < 3.0
    blind_dice, _ = dice_and_error(visible=False)
    assert blind_dice < dice / 2


def test_augmentation_moves_image_and_mask_alike() -> None:
    mask = torch.zeros(2, 1, 30, 40)
    mask[:, :, 10:14, 5:9] = 1
    moves, contrast = np.random.default_rng(0).spawn(2)
    for _ in range(8):
        image, moved = augmented(2 * mask - 1, mask, moves, [contrast])
        torch.testing.assert_close((image + 1) / 2, moved)
        assert moved.sum() == mask.sum()


def test_what_moves_out_does_not_come_in_from_the_other_side() -> None:
    moves, contrast = np.random.default_rng(0).spawn(2)
    mask = torch.ones(1, 1, 20, 30)
    seen = set()
    for _ in range(8):
        image, moved = augmented(2 * mask - 1, mask, moves, [contrast])
        torch.testing.assert_close((image + 1) / 2, moved)
        lost = [int((~moved[0, 0].bool().any(axis)).sum()) for axis in (1, 0)]
        assert moved.sum() == (20 - lost[0]) * (30 - lost[1])
        seen.update(lost)
    assert seen == {0, 1, 2, 3}, "up to a tenth of either side"


def test_the_same_settings_give_the_same_probe_and_channels_may_be_two() -> None:
    config = ProbeConfig(steps=3, batch_size=2, channels=(4, 8))
    cases = [scene(1, channels=2), scene(2, channels=2, side=30)]
    before = torch.random.get_rng_state()
    first, second = (train_probe(cases, config).maps(cases[1]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2, 8, 30, 24)
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is left alone"


def test_heat_and_places_are_in_millimetres() -> None:
    case = scene(0)
    heat = heat_maps(case, 4.0)[0]
    d, h, w = (int(x) for x in case.landmarks["dot"])
    assert heat[d, h, w] == 1.0
    assert heat[d + 1, h, w] == pytest.approx(np.exp(-(3.0**2) / 32), abs=1e-6)
    assert heat[d, h + 2, w] == pytest.approx(np.exp(-(3.0**2) / 32), abs=1e-6)
    np.testing.assert_array_equal(heat_maps(case, 4.0, slice(2, 3)), heat_maps(case, 4.0)[:, 2:3])
    places = with_places(case)
    assert places.shape == (4, 8, 24, 24)
    assert places[1, -1, 0, 0] - places[1, 0, 0, 0] == pytest.approx(7 * 3.0 / 80)
    found = located(heat_maps(case, 4.0), ["dot"], SPACING, 4.0)
    assert apart_mm(found["dot"], case.landmarks["dot"], SPACING) < 0.5


def test_centre_and_distance() -> None:
    mask = np.zeros((4, 5, 6))
    assert centre(mask) is None
    mask[1, 2:4, 3] = 1
    assert centre(mask) == (1.0, 2.5, 3.0)
    assert apart_mm((0, 0, 0), (1, 2, 0), SPACING) == pytest.approx(np.hypot(3, 3))


def test_impossible_asks_are_refused() -> None:
    empty = scene(0)
    nothing = ProbeCase(image=empty.image, lesion=empty.lesion * 0, spacing=SPACING)
    with pytest.raises(InputError, match="no training case has a lesion"):
        train_probe([nothing], ProbeConfig(steps=1))
    with pytest.raises(InputError, match="training cases differ"):
        train_probe([scene(0), scene(1, channels=2)], ProbeConfig(steps=1))
    with pytest.raises(ConfigError, match="impossible settings"):
        ProbeConfig(steps=0)


def grown(case: ProbeCase, side: int) -> ProbeCase:
    """The case with rows of background after its last, without landmarks."""
    rows = (0, side - case.lesion.shape[1])
    return ProbeCase(
        image=np.pad(case.image, [(0, 0), (0, 0), rows, (0, 0)]),
        lesion=np.pad(case.lesion, [(0, 0), rows, (0, 0)]),
        spacing=case.spacing,
    )


def test_beyond_a_smaller_case_lies_its_background() -> None:
    config = ProbeConfig(steps=3, batch_size=4, channels=(4, 8))
    small, large = grown(scene(1), 24), grown(scene(2, side=32), 32)
    by_batch, by_hand = (train_probe([one, large], config).maps(large) for one in (small, grown(small, 32)))
    np.testing.assert_array_equal(by_batch, by_hand)


def test_places_go_on_beyond_a_smaller_case() -> None:
    case = scene(0)
    image, target = padded_slice(case, 3, (30, 27), 3.0)
    assert image.shape == (4, 30, 27) and target.shape == (2, 30, 27)
    np.testing.assert_array_equal(image[:, :24, :24], with_places(case)[:, 3])
    assert (image[0, 24:] == -1).all() and (image[0, :, 24:] == -1).all()
    assert not target[:, 24:].any() and not target[:, :, 24:].any()
    steps = [np.diff(image[place], axis=axis) for place, axis in ((2, 0), (3, 1))]
    np.testing.assert_allclose(steps[0], 1.5 / 80, atol=1e-6)
    np.testing.assert_allclose(steps[1], 2.0 / 80, atol=1e-6)
    assert (image[1] == image[1, 0, 0]).all()


def test_a_second_channel_changes_neither_slices_nor_order_nor_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(channels: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = []

        def noted(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = augmented(*given)
            batches.append((image[:, :1], mask))
            return image, mask

        monkeypatch.setattr(downstream, "augmented", noted)
        cases = [scene(k, channels=channels) for k in range(4)]
        train_probe(cases, ProbeConfig(steps=4, batch_size=3, channels=(4, 8)))
        return batches

    for one, two in zip(seen(1), seen(2), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_second_channel_changes_no_other_layer_s_first_weights() -> None:
    one, two = (dict(Probe(n, ["dot"], ProbeConfig()).named_parameters()) for n in (1, 2))
    assert one.keys() == two.keys()
    differ = {name for name in one if one[name].shape != two[name].shape}
    assert len(differ) == 4, "weights of the first convolution and of the path beside it, of both networks"
    beside = {name.replace("weight", "bias") for name in differ}
    for name in one.keys() - differ - beside:
        assert torch.equal(one[name], two[name]), name
    other = dict(Probe(1, ["dot"], ProbeConfig(seed=1)).named_parameters())
    assert not any(torch.equal(one[name], other[name]) for name in differ)


def test_inside_is_where_a_voxel_is() -> None:
    assert inside((-0.5, 0.0, 5.5), (4, 5, 6)) and inside((3.5, 4.4, 2.0), (4, 5, 6))
    assert not inside((-0.6, 0.0, 0.0), (4, 5, 6)) and not inside((0.0, 4.6, 0.0), (4, 5, 6))


def test_a_training_that_diverged_is_refused() -> None:
    with pytest.raises(InputError, match="diverged"):
        train_probe([scene(0)], ProbeConfig(steps=3, batch_size=2, channels=(4, 8), learning_rate=1e30))

"""Simulated SPECT and PET images: which crops get one, and what is where in it."""

from __future__ import annotations

import pytest
import torch
from clinfuse_prep.masks.uptake import uptake_from

from clinfuse.training.contrast import quantiles_within
from clinfuse.training.losses import Batch
from clinfuse.training.tracer import FWHM_PER_SIGMA, UPTAKE_SHARE, tracer_image, with_tracers

SPACING = (1.5, 2.0)


def a_batch(count: int = 12, size: int = 48) -> Batch:
    generator = torch.Generator().manual_seed(3)
    shape = (count, 1, size, size)
    brain, bone, lesion = (torch.zeros(shape) for _ in range(3))
    bone[..., 4:44, 4:44] = 1
    bone[..., 6:42, 6:42] = 0
    brain[..., 6:42, 6:42] = 1
    lesion[..., 10:16, 10:16] = 1
    anatomy = 0.5 * brain + 0.2 * brain * torch.rand(shape, generator=generator)
    return {
        "anatomy": anatomy,
        "companion": bone,
        "aligned": bone.clone(),
        "brain": brain,
        "bone": bone,
        "lesion": lesion,
        "spacing": torch.tensor([SPACING] * count),
        "ct": torch.ones(count),
    }


def test_a_share_of_the_crops_is_seen_with_a_tracer_and_the_others_are_as_they_were() -> None:
    batch = a_batch()
    none, some, every = (with_tracers(batch, share, seed=2) for share in (0.0, 0.4, 1.0))
    assert all(torch.equal(none[name], batch[name]) for name in batch)
    assert not every["ct"].any() and 0 < some["ct"].sum() < len(batch["ct"])
    kept = some["ct"] > 0
    for name in batch:
        assert torch.equal(some[name][kept], batch[name][kept])
        assert torch.equal(some[name][~kept], every[name][~kept]), "whatever the share"
    again, other = (with_tracers(batch, 1.0, seed=seed) for seed in (2, 3))
    assert all(torch.equal(again[name], every[name]) for name in batch)
    assert not torch.equal(other["companion"], every["companion"])


def test_its_uptake_takes_the_place_of_bone_amid_the_brain() -> None:
    batch = a_batch()
    made = with_tracers(batch, 1.0, seed=4)
    uptake, brain, before = made["bone"] > 0, made["brain"] > 0, batch["brain"] > 0
    assert torch.equal(made["companion"], made["aligned"])
    assert made["companion"].min() >= 0 and made["companion"].max() == 1
    assert not (uptake & brain).any() and torch.equal(brain | (uptake & before), before)
    for image, inside, region in zip(made["companion"], before, uptake, strict=True):
        share = float((region & inside).sum() / inside.sum())
        assert UPTAKE_SHARE[0] - 0.01 <= share <= UPTAKE_SHARE[1] + 0.01
        assert image[region].min() >= image[inside & ~region].max(), "the brightest of the brain"
    for name in ("anatomy", "lesion", "spacing"):
        assert made[name] is batch[name]


def test_what_shows_no_brain_or_no_ct_stays() -> None:
    batch = a_batch(4)
    batch["brain"][0] = 0
    batch["ct"][1] = 0
    made = with_tracers(batch, 1.0, seed=4)
    for name in ("companion", "aligned", "brain", "bone", "ct"):
        assert torch.equal(made[name][:2], batch[name][:2])
    assert not made["ct"][2:].any()


@pytest.mark.parametrize("resolution", [0.0, 1.0])
def test_a_border_is_as_blurred_as_the_resolution_says(resolution: float) -> None:
    """Across a straight border the image is a Gaussian's integral: its slope gives back the width, in mm."""
    batch = a_batch(1, 96)
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[:, :48] = True
    crop = {"anatomy": inside[None].float(), "lesion": torch.zeros(1, 96, 96), "spacing": batch["spacing"][0]}
    images = [tracer_image(crop, inside, [1.0, 0.5, 0.5, 0.0, resolution], seed) for seed in range(200)]
    profile = torch.stack(images).mean(0)[0, 30:66].mean(0)
    slope = (profile[47] - profile[48]) / SPACING[1] / profile[30:36].mean()
    sigma = 1 / (slope * (2 * torch.pi) ** 0.5)
    expected = (4.0 if resolution == 0 else 16.0) / FWHM_PER_SIGMA
    assert float(sigma) == pytest.approx(expected, rel=0.12)


def test_a_lesion_s_activity_is_its_own() -> None:
    batch = a_batch(1)
    crop = {name: batch[name][0] for name in ("anatomy", "lesion", "spacing")}
    inside, lesion = batch["brain"][0, 0] > 0, batch["lesion"][0, 0] > 0
    means = []
    for hot in (0.02, 0.5, 0.98):
        image = tracer_image(crop, inside, [0.5, 0.5, hot, 0.0, 0.0], 1)[0]
        means.append(float(image[lesion].mean() / image[inside & ~lesion].mean()))
    assert means[0] < 0.6 < means[1] < 1.6 < means[2]


def test_in_a_large_crop_the_whole_brain_says_what_is_hot() -> None:
    """Greys that rise along the first axis: quantiles of the first hundred thousand voxels are not the brain's."""
    size = 64
    ramp = torch.linspace(0.2, 0.8, size)[:, None, None].expand(size, size, size).contiguous()
    inside = torch.ones(size, size, size, dtype=torch.bool)
    low, middle, high = quantiles_within(ramp, inside, [0.02, 0.5, 0.98]).tolist()
    assert low == pytest.approx(0.212, abs=0.01) and high == pytest.approx(0.788, abs=0.01)
    assert middle == pytest.approx(0.5, abs=0.01)


def test_its_uptake_is_about_what_prep_would_find() -> None:
    """The class of a third or so of the brain, as Otsu's three classes have it."""
    made = with_tracers(a_batch(), 1.0, seed=9)
    shares = []
    for image, before in zip(made["companion"], a_batch()["brain"], strict=True):
        found = uptake_from(image.numpy(), before.numpy() > 0, (5.0, *SPACING))[0]
        shares.append(found[before.numpy() > 0].mean())
    assert UPTAKE_SHARE[0] < sum(shares) / len(shares) < UPTAKE_SHARE[1]

"""Contrast augmentation: place and order of greys are kept where they should be, and a seed repeats it."""

from __future__ import annotations

import torch

from clinfuse.training.contrast import vary_contrast


def a_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (6, 1, 12, 20)
    brain = torch.zeros(shape)
    brain[..., 3:9, 4:16] = 1
    companion = torch.where(brain > 0, 0.07, 0.6) + 0.02 * torch.rand(shape, generator=generator)
    return {
        "anatomy": torch.rand(shape, generator=generator),
        "companion": companion,
        "aligned": companion.clone(),
        "brain": brain,
        "lesion": torch.zeros(shape),
    }


def test_no_share_changes_nothing_and_a_seed_repeats() -> None:
    batch = a_batch()
    same = vary_contrast(batch, 0.0, seed=1)
    assert all(torch.equal(same[key], batch[key]) for key in batch)
    once, again, other = (vary_contrast(batch, 1.0, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(once[key], again[key]) for key in batch)
    assert not torch.equal(once["companion"], other["companion"])


def test_companion_and_its_aligned_form_change_alike_and_keep_their_order() -> None:
    batch = a_batch()
    varied = vary_contrast(batch, 1.0, seed=5)
    assert torch.equal(varied["companion"], varied["aligned"])
    assert torch.equal(varied["brain"], batch["brain"]) and varied["lesion"] is batch["lesion"]
    for before, after in zip(batch["companion"], varied["companion"], strict=True):
        order = before.flatten().argsort()
        assert bool((after.flatten()[order].diff() >= 0).all())
        inside = batch["brain"][0, 0] > 0
        assert float(after[0][inside].max()) < 1 < 1.5 * float(after[0][~inside].max())


def test_anatomy_stays_in_range_and_is_inverted_only_inside_the_brain() -> None:
    batch = a_batch()
    varied = vary_contrast(batch, 1.0, seed=5)["anatomy"]
    assert float(varied.min()) >= 0 and float(varied.max()) <= 1
    inside, rising = batch["brain"][0, 0] > 0, []
    for before, after in zip(batch["anatomy"], varied, strict=True):
        for region in (inside, ~inside):
            pair = torch.stack([before[0][region], after[0][region]])
            rising.append(float(torch.corrcoef(pair)[0, 1]) > 0)
    assert all(rising[1::2]) and any(rising[::2]) and not all(rising[::2])

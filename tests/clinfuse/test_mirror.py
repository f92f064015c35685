"""Mirror augmentation: whole crops turn, all their images alike, and a seed repeats it."""

from __future__ import annotations

import torch

from clinfuse.training.mirror import mirrored


def test_crops_turn_as_a_whole() -> None:
    images = torch.rand((40, 1, 6, 8), generator=torch.Generator().manual_seed(0))
    batch = {"anatomy": images, "lesion": (images > 0.7).float(), "spacing": torch.ones(40, 2)}
    turned = mirrored(batch, seed=3)
    own = [bool(torch.equal(a, b)) for a, b in zip(images, turned["anatomy"], strict=True)]
    other = [bool(torch.equal(a.flip(-1), b)) for a, b in zip(images, turned["anatomy"], strict=True)]
    assert all(a != b for a, b in zip(own, other, strict=True)) and 10 < sum(own) < 30
    assert torch.equal(turned["lesion"], (turned["anatomy"] > 0.7).float())
    assert turned["spacing"] is batch["spacing"]
    assert torch.equal(mirrored(batch, seed=3)["anatomy"], turned["anatomy"])
    assert not torch.equal(mirrored(batch, seed=4)["anatomy"], turned["anatomy"])

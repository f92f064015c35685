"""Mirror augmentation: heads are nearly symmetric, so each one mirrored is as good as another."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def mirrored(batch: Batch, seed: int) -> Batch:
    """A batch in which each crop is mirrored left to right (last axis) with probability ½, all its images alike.

    Args:
        batch: images and masks (B, 1, *S); other tensors stay as they are.
        seed: the same seed mirrors the same crops.
    """
    shape = batch["anatomy"].shape
    chosen = torch.rand(len(batch["anatomy"]), generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen = chosen.reshape(-1, *[1] * (len(shape) - 1))
    return {
        name: torch.where(chosen, value.flip(-1), value) if value.shape == shape else value
        for name, value in batch.items()
    }

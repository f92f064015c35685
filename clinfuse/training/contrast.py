"""Contrast augmentation: other CT windows and other MR weightings, so that a model does not depend on one of each.

Sources come in many: CT as HU in a bone window or as 8-bit greys in an unknown one, MRI as T1, T1c or T2. Content and
place stay; grey values of a share of the crops change, of the companion and its aligned form alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Batch = dict[str, Tensor]
GAMMA_SPREAD = 0.3
INVERTED_SHARE = 0.3
LOWEST_TOP = 0.1
BRAIN_MARGIN = 1.3
MOST_VOXELS = 100_000


def vary_contrast(batch: Batch, share: float, seed: int) -> Batch:
    """A batch with the grey values of a share of its crops changed.

    Args:
        batch: tensors (B, 1, *S) in [0, 1]; read are anatomy, companion, aligned and brain.
        share: of the crops, 0 to 1, for the companion and for the anatomy independently.
        seed: the same seed makes the same changes.

    Returns:
        The batch; other keys are as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(batch["anatomy"])
    changed = torch.rand(2, count, generator=generator) < share
    anatomy, pair = batch["anatomy"].clone(), torch.cat([batch["companion"], batch["aligned"]], dim=1)
    for item in range(count):
        inside = batch["brain"][item, 0] > 0.5
        draws = torch.rand(4, generator=generator)
        if changed[0, item]:
            pair[item] = _rewindowed(pair[item], inside, draws[:2])
        if changed[1, item]:
            anatomy[item] = _reweighted(anatomy[item], inside, draws[2:])
    companion, aligned = pair.split(1, dim=1)
    return {**batch, "anatomy": anatomy, "companion": companion, "aligned": aligned}


def _rewindowed(pair: Tensor, inside: Tensor, draws: Tensor) -> Tensor:
    """Another window whose top lies above the brain's own greys: (2, *S) in [0, 1]."""
    brain = float(pair[0][inside].median()) if inside.any() else 0.0
    least = min(max(LOWEST_TOP, BRAIN_MARGIN * brain), 1.0)
    top = least ** float(draws[0])
    bottom = 0.5 * brain * float(draws[1])
    return ((pair - bottom) / (top - bottom)).clamp(0, 1)


def _reweighted(image: Tensor, inside: Tensor, draws: Tensor) -> Tensor:
    """Another gamma, sometimes with the brain's contrast inverted as between T1 and T2: (1, *S) in [0, 1]."""
    image = image.clamp(0, 1)
    if float(draws[0]) < INVERTED_SHARE and inside.any():
        low, high = quantiles_within(image[0], inside, [0.02, 0.98])
        image = torch.where(inside, (low + high - image).clamp(0, 1), image)
    gamma = torch.exp(GAMMA_SPREAD * torch.erfinv(2 * draws[1].clamp(0.01, 0.99) - 1) * 2**0.5)
    return image.clamp_min(1e-4) ** gamma


def quantiles_within(image: Tensor, inside: Tensor, shares: list[float]) -> Tensor:
    """Quantiles (len(shares),) of an image (*S) where `inside` (*S) holds, of every so many of its voxels if there are
    more than `MOST_VOXELS`."""
    values = image[inside]
    return torch.quantile(values[:: math.ceil(len(values) / MOST_VOXELS)], torch.tensor(shares))

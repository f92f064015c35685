"""Simulated SPECT and PET images, so that a model trained on CT has seen the other kind of companion.

A tracer gathers in one tissue more than in others, unevenly, in a lesion more or less, hardly outside the brain; the
scanner blurs it. Where most is, F shall show the companion as it shows the CT in bone. Such an image is made from the
crop's own MRI, so it lies on it exactly; what is learned from it is how to fuse a smooth image whose region lies in
pieces amid the brain, not what any tracer looks like.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clinfuse.case import HEAD_LEVEL
from clinfuse.method.filters import gaussian_blur
from clinfuse.training.contrast import quantiles_within

Batch = dict[str, Tensor]
FWHM_MM = (4.0, 16.0)
"""Resolution: full width at half maximum of the scanner's point spread function, from PET to SPECT."""
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
TISSUE_WIDTH = (0.2, 0.6)
"""How narrow a range of the brain's greys (0 to 1) takes the tracer up."""
LEAST_ACTIVITY = 0.2
"""Of the other tissues of the brain, relative to that."""
UNEVEN, UNEVEN_MM = 0.3, 10.0
"""Standard deviation of the activity's slow changes, relative, and the width of their Gaussian, mm."""
LESION_SPREAD = 0.7
"""Standard deviation of the logarithm of a lesion's activity relative to its surroundings."""
OUTSIDE = 0.2
"""At most so much activity outside the brain."""
UPTAKE_SHARE = (0.15, 0.5)
"""Of the brain's voxels, the brightest that are its uptake: as many as the uppermost class of three usually has."""
LEAST_BRAIN = 0.05
"""Of a crop's voxels; with less of it there is nothing to show."""


def with_tracers(batch: Batch, share: float, seed: int) -> Batch:
    """A batch in which a share of the crops has a simulated tracer's image instead of its CT.

    Args:
        batch: images and masks (B, 1, *S), spacing (B, d) in mm and ct (B,), see clinfuse.training.losses.
        share: of the crops, 0 to 1; one that shows next to no brain, or no CT, stays as it is.
        seed: the same seed makes the same images.

    Returns:
        The batch; in those crops the companion and its aligned form are the tracer's image in [0, 1], "bone" is its
        uptake, "brain" what lies outside that, and "ct" 0. The lesion stays.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = {name: batch[name].clone() for name in ("companion", "aligned", "brain", "bone", "ct")}
    for item in range(len(batch["anatomy"])):
        drawn, own = torch.rand(7, generator=generator), int(torch.randint(2**62, (), generator=generator))
        inside = batch["brain"][item, 0] > 0.5
        if drawn[0] >= share or not batch["ct"][item] or inside.float().mean() < LEAST_BRAIN:
            continue
        crop = {name: batch[name][item] for name in ("anatomy", "lesion", "spacing")}
        image = tracer_image(crop, inside, drawn[1:6].tolist(), own)
        uptake = image > quantiles_within(image[0], inside, [1 - _within(UPTAKE_SHARE, float(drawn[6]))])
        changed["companion"][item] = changed["aligned"][item] = image
        changed["bone"][item] = uptake
        changed["brain"][item] = inside & ~uptake
        changed["ct"][item] = 0
    return {**batch, **changed}


def tracer_image(crop: Batch, inside: Tensor, draws: list[float], seed: int) -> Tensor:
    """One crop's simulated image (1, *S) in [0, 1].

    Args:
        crop: anatomy and lesion (1, *S), spacing (d,) in mm.
        inside: (*S,) bool, the brain.
        draws: five numbers in [0, 1): the tissue, its width, the lesion's activity, that outside, the resolution.
        seed: of the slow changes.
    """
    anatomy, lesion, spacing = crop["anatomy"], crop["lesion"], crop["spacing"]
    tissue, width, hot, outside, resolution = draws
    low, high = quantiles_within(anatomy[0], inside, [0.02, 0.98])
    grey = ((anatomy - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
    taken_up = torch.exp(-0.5 * ((grey - tissue) / _within(TISSUE_WIDTH, width)) ** 2)
    activity = (LEAST_ACTIVITY + (1 - LEAST_ACTIVITY) * taken_up) * _uneven(anatomy, spacing, seed)
    hotness = math.exp(LESION_SPREAD * 2**0.5 * float(torch.erfinv(torch.tensor(1.96 * hot - 0.98))))
    activity = torch.where(lesion > 0.5, hotness * activity, activity)
    around = OUTSIDE * outside * (anatomy > HEAD_LEVEL)
    sigma = round(_within(FWHM_MM, resolution)) / FWHM_PER_SIGMA
    image = _blurred(torch.where(inside, activity, around), sigma, spacing)
    return (image / quantiles_within(image[0], inside, [0.999])).clamp(0, 1)


def _uneven(like: Tensor, spacing: Tensor, seed: int) -> Tensor:
    """Slow changes about 1, at least 0: blurred white noise (1, *S)."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    slow = _blurred(noise, UNEVEN_MM, spacing)
    return (1 + UNEVEN * slow / slow.std().clamp_min(1e-6)).clamp_min(0)


def _blurred(image: Tensor, sigma_mm: float, spacing: Tensor) -> Tensor:
    """(1, *S) under a Gaussian of that width in mm; to a hundredth of a voxel, so that few kernels are made anew."""
    return gaussian_blur(image[None], [round(max(sigma_mm / step, 0.1), 2) for step in spacing.tolist()])[0]


def _within(bounds: tuple[float, float], draw: float) -> float:
    low, high = bounds
    return low + (high - low) * draw

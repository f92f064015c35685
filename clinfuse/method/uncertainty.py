"""Predicted spatial uncertainty U(x_t) and what it does to guidance (Section 3.4, Eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clinfuse.method.denoiser import Estimate, to_image, to_image_variance
from clinfuse.method.filters import gaussian_blur
from clinfuse.method.prior import Sources, weight_of
from clinfuse.method.variances import HALF_SATURATION

REMAINING_MM = 0.75


def saturating(std: Tensor) -> Tensor:
    """uncert of Eq. 4: std/(std + 0.05), so 0.05 grey of doubt counts one half; same shape, in [0, 1).

    A model's calibration is not taken for it: that is of what the error head says of the finished F of all members;
    inside a step only a denoiser's own `predicted_std` is known, and orders the voxels.
    """
    return std / (std + HALF_SATURATION)


def predicted_std(estimates: list[Estimate], levels: int) -> Tensor:
    """Per-voxel standard deviation (B, 1, *S) in image units, differentiable in x_t.

    Aleatoric variance is the mean of the members' own log-variance outputs; epistemic variance, with two or more
    members, the disagreement of their denoised estimates (Lakshminarayanan et al., NeurIPS 2017, Section 2.4).
    """
    variance = torch.stack([to_image_variance(e.log_variance, levels) for e in estimates]).mean(dim=0)
    if len(estimates) > 1:
        images = torch.stack([to_image(e.x_0, levels) for e in estimates])
        variance = variance + images.var(dim=0, unbiased=False)
    return (variance + 1e-10).sqrt()


class Slopes(NamedTuple):
    """What registration variance takes from a batch whatever the preset: its sources, the bone mask, and the slopes
    (per mm) of the companion and of its findings along every axis longer than one voxel, (B, 1, *S) each."""

    sources: Sources
    bone: Tensor
    of_companion: tuple[Tensor, ...]
    of_findings: tuple[Tensor, ...]


def slopes(sources: Sources, bone: Tensor, spacing_mm: tuple[float, ...]) -> Slopes:
    """Slopes of a batch with that voxel spacing along *S, of images smoothed by a Gaussian of σ = 0.75 mm.

    The slope of the smoothed image is what best foretells, linearly, how a shift of that size changes it (Stein's
    lemma); the slope at the voxel itself is largely noise.
    """
    axes = [
        (axis, step) for axis, step in enumerate(spacing_mm, start=2) if sources.companion.shape[axis] > 1
    ]
    smooth = gaussian_blur(
        torch.cat([sources.companion, sources.findings], dim=1), [REMAINING_MM / step for step in spacing_mm]
    )
    of_companion, of_findings = (
        tuple(torch.gradient(image, spacing=step, dim=axis)[0] for axis, step in axes)
        for image in smooth.split(1, dim=1)
    )
    return Slopes(sources, bone, of_companion, of_findings)


def registration_variance(slopes: Slopes, vector: Tensor) -> Tensor:
    """Variance of F by the misregistration that is left, to first order, (B, 1, *S) in image units² (Section 3.4).

    The companion's content shifted by δ ~ N(0, σ²I), σ = 0.75 mm, changes F by what F shows of it:
    w·∇C·δ (w = 1 in bone), and where its findings are painted in (see clinfuse.method.prior) by their borders. A
    jitter ensemble measures the same by drawing; this costs no draw.

    Args:
        slopes: of the batch.
        vector: preset vectors (B, 6).
    """
    w = torch.maximum(weight_of(slopes.sources, vector), slopes.bone)
    painted = (1 - w) * slopes.sources.room
    variance = torch.zeros_like(w)
    for of_companion, of_findings in zip(slopes.of_companion, slopes.of_findings, strict=True):
        variance = variance + (w * of_companion + painted * of_findings) ** 2
    return REMAINING_MM**2 * variance


def mean_uncertainty(std: Tensor, head: Tensor) -> Tensor:
    """U(x_t) of Eq. 1 per sample, (B,): mean predicted standard deviation inside the head mask (B, 1, *S)."""
    axes = tuple(range(1, std.ndim))
    return (std * head).sum(axes) / head.sum(axes).clamp_min(1.0)


def effective_strength(uncertainty: Tensor, eta: float, kappa: float) -> Tensor:
    """η^eff(p) = η·σ(κ·(1 − conf(p))) with conf = 1 − uncert (Eq. 4).

    Args:
        uncertainty: uncert(p) in [0, 1], any shape.
        eta: strength η.
        kappa: slope κ; 0 gives the uniform strength η/2.

    Returns:
        Same shape: η/2 where the model is sure, towards η·σ(κ) where it is not.
    """
    confidence = 1 - uncertainty
    return eta * torch.sigmoid(kappa * (1 - confidence))


def to_haar_grid(values: Tensor, levels: int) -> Tensor:
    """Mean of a voxel map (B, 1, *S) over each Haar block, (B, 1, *Z), to weigh all of a block's subbands alike."""
    pool = F.avg_pool2d if values.ndim == 4 else F.avg_pool3d
    return pool(values, 2**levels)

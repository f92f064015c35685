"""The seam penalty: gradients of F that exceed those of both sources are borders that nobody has."""

from __future__ import annotations

import torch
from torch import Tensor

from clinfuse.method.filters import gaussian_slope

SIGMA = 0.7


def gradient_magnitude(image: Tensor) -> Tensor:
    """(B, 1, *S) → same shape, per voxel, by derivatives of a Gaussian of σ = 0.7 voxel, as the seam index takes it.

    Differences of the smoothed image would not see all of an edge of one voxel.
    """
    squares = [gaussian_slope(image, SIGMA, axis).square() for axis in range(2, image.ndim)]
    return (torch.stack(squares).sum(dim=0) + 1e-8).sqrt()


def seam_loss(fused: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
    """Mean excess of |∇F| over max(|∇I_M|, |∇I_C|), per sample (B,), all images (B, 1, *S) in [0, 1].

    The differentiable form of the seam index (clinfuse.metrics.seam), taken over the whole image.
    """
    sources = torch.maximum(gradient_magnitude(anatomy), gradient_magnitude(companion))
    return (gradient_magnitude(fused) - sources).clamp_min(0).flatten(1).mean(dim=1)

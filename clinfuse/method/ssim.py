"""Masked structural similarity, differentiable, per sample, in 2D and 3D (first two terms of Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from clinfuse.method.filters import gaussian_blur

SIGMA, RADIUS = 1.5, 5
C1, C2 = 0.01**2, 0.03**2


def ssim_map(image: Tensor, reference: Tensor) -> Tensor:
    """Local SSIM of two images in [0, 1], (B, 1, *S) → (B, 1, *S) in [-1, 1].

    Gaussian window of σ = 1.5 voxels and radius 5, population statistics, data range 1.

    Reference: Wang et al., IEEE TIP 13(4), 2004, Eq. 13.
    """
    moments = torch.cat([image, reference, image**2, reference**2, image * reference], dim=1)
    mu_x, mu_y, xx, yy, xy = gaussian_blur(moments, SIGMA, RADIUS).split(1, dim=1)
    var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
    return luminance * (2 * cov + C2) / (var_x + var_y + C2)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, 1, *S) values under mask weights, per sample (B,); zero where the mask is empty."""
    axes = tuple(range(1, values.ndim))
    return (values * mask).sum(axes) / mask.sum(axes).clamp_min(1e-6)


def ssim_loss(image: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """1 − SSIM(F, I | M): every window counts with the mask weight at its centre.

    Args:
        image, reference: (B, 1, *S) in [0, 1].
        mask: (B, 1, *S) weights in [0, 1].

    Returns:
        (B,) in [0, 2]; exactly 0 where the mask is empty.

    Reference: proposal, Eq. 2 and Algorithm 1, lines 5 and 6.
    """
    return masked_mean(1 - ssim_map(image, reference), mask)

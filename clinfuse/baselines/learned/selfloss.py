"""The self-supervised fusion loss: structure of both sources, the stronger gradient, the brighter pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clinfuse.method.ssim import ssim_map

GRADIENT_WEIGHT, INTENSITY_WEIGHT = 5.0, 2.0


def fusion_loss(fused: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
    """Per-sample loss (B,) of F against its sources, all (B, 1, H, W) in [0, 1]; at least 0.

    1 − SSIM to each source where it is the locally more contrasted one, the distance of F's Sobel gradient from the
    stronger source's, and of F from the pixel maximum.

    Reference: Xu, Ma 2021, Information Fusion 76 (EMFusion, surface-level constraints); Tang et al. 2022,
    Information Fusion 82 (gradient and intensity terms).
    """
    g_f, g_m, g_c = (sobel(x) for x in (fused, anatomy, companion))
    strength_m, strength_c = (g.abs().sum(1, keepdim=True) for g in (g_m, g_c))
    by_m = (F.avg_pool2d(strength_m - strength_c, 11, 1, 5) > 0).float()
    structure = by_m * (1 - ssim_map(fused, anatomy)) + (1 - by_m) * (1 - ssim_map(fused, companion))
    stronger = torch.where(strength_m > strength_c, g_m, g_c)
    brightest = torch.maximum(anatomy, companion)
    parts = (
        structure,
        GRADIENT_WEIGHT * (g_f - stronger).abs().mean(1, keepdim=True),
        INTENSITY_WEIGHT * (fused - brightest).abs(),
    )
    return torch.stack([p.mean(dim=(1, 2, 3)) for p in parts]).sum(0)


def sobel(image: Tensor) -> Tensor:
    """(B, 1, H, W) → horizontal and vertical derivative (B, 2, H, W), grey per pixel."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(image) / 8
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])

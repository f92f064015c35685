"""Separable Gaussian filtering of (B, C, *S) tensors in 2D and 3D, shared by SSIM and the fusion prior."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=64)
def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """Normalised Gaussian weights of length 2·radius + 1; sigma in voxels."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2)
    return (weights / weights.sum()).float()


def gaussian_blur(image: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Blur (B, C, *S) along every spatial axis; borders are mirrored (voxel centre) or, when tiny, repeated.

    Args:
        image: float tensor with 2 or 3 spatial axes.
        sigma: standard deviation in voxels.
        radius: half width of the window in voxels; default 3·sigma rounded up.
    """
    radius = radius if radius is not None else max(1, int(3 * sigma + 0.5))
    kernel = gaussian_kernel(float(sigma), radius).to(image)
    batch, channels, *space = image.shape
    flat = image.reshape(batch * channels, 1, *space)
    for axis in range(len(space)):
        flat = _filter_axis(flat, kernel, axis, radius)
    return flat.reshape(batch, channels, *space)


def _filter_axis(flat: Tensor, kernel: Tensor, axis: int, radius: int) -> Tensor:
    dims = flat.ndim - 2
    padding = [0, 0] * dims
    padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = radius
    mode = "reflect" if flat.shape[2 + axis] > radius else "replicate"
    padded = F.pad(flat, padding, mode=mode)
    shape = [1, 1, *[1] * dims]
    shape[2 + axis] = 2 * radius + 1
    convolve = F.conv2d if dims == 2 else F.conv3d
    return convolve(padded, kernel.reshape(shape))

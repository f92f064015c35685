"""Separable Gaussian filtering of (B, C, *S) tensors in 2D and 3D, shared by SSIM and the fusion prior."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """Normalised Gaussian weights of length 2·radius + 1; sigma in voxels."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2)
    return (weights / weights.sum()).float()


def gaussian_blur(image: Tensor, sigma: float | Sequence[float], radius: int | None = None) -> Tensor:
    """Blur (B, C, *S) along every spatial axis; borders are mirrored (voxel centre) or, when tiny, repeated.

    Each axis is one product with a band matrix: on axes of up to about 500 voxels several times faster than a
    convolution of one channel, forward and backward.

    Args:
        image: float tensor with 2 or 3 spatial axes.
        sigma: standard deviation in voxels, or one per spatial axis.
        radius: half width of the window in voxels; default 3·sigma rounded.
    """
    for axis in range(2, image.ndim):
        own = float(sigma if isinstance(sigma, (int, float)) else sigma[axis - 2])
        window = radius if radius is not None else max(1, int(3 * own + 0.5))
        matrix = blur_matrix(image.shape[axis], own, window, image.device, image.dtype)
        if axis == image.ndim - 1:
            image = image @ matrix.T
        elif axis == image.ndim - 2:
            image = matrix @ image
        else:
            image = (matrix @ image.flatten(axis + 1)).reshape(image.shape)
    return image


@lru_cache(maxsize=256)
def blur_matrix(size: int, sigma: float, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, size) matrix whose product with a line of voxels is its Gaussian blur."""
    mode: Literal["reflect", "edge"] = "reflect" if size > radius else "edge"
    source = np.pad(np.arange(size), radius, mode=mode)
    window = gaussian_kernel(sigma, radius).double().numpy()
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(window):
        np.add.at(matrix, (np.arange(size), source[offset : offset + size]), weight)
    with torch.inference_mode(False):  # kept, and used in training too
        return torch.from_numpy(matrix).to(device=device, dtype=dtype)

"""Separable Gaussian filtering of (B, C, *S) tensors in 2D and 3D, shared by SSIM and the fusion prior."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as tf
from torch import Tensor

from clinfuse.method.band import along, band_matrix, reach


def gaussian_blur(image: Tensor, sigma: float | Sequence[float], radius: int | None = None) -> Tensor:
    """Blur (B, C, *S) along every spatial axis; borders are mirrored (voxel centre) or, when tiny, repeated.

    Each axis is one product with a band matrix (clinfuse.method.band), forward and backward.

    Args:
        image: float tensor with 2 or 3 spatial axes.
        sigma: standard deviation in voxels, or one per spatial axis.
        radius: half width of the window in voxels; default 3·sigma rounded.
    """
    for axis in range(2, image.ndim):
        own = float(sigma if isinstance(sigma, (int, float)) else sigma[axis - 2])
        window = radius if radius is not None else _radius(own)
        image = along(image, axis, blur_matrix(image.shape[axis], own, window, image.device, image.dtype))
    return image


def gaussian_slope(image: Tensor, sigma: float, axis: int) -> Tensor:
    """Derivative along one spatial axis of (B, C, *S) smoothed by a Gaussian of sigma voxels, per voxel."""
    for each in range(2, image.ndim):
        size, window = image.shape[each], _radius(sigma)
        matrix = blur_matrix(size, sigma, window, image.device, image.dtype, slope=each == axis)
        image = along(image, each, matrix)
    return image


def largest_within(image: Tensor, voxels: int) -> Tensor:
    """Largest value of (B, C, *S) within so many voxels along every spatial axis; many times quicker than pooling."""
    window = 2 * voxels + 1
    for axis in range(2, image.ndim):
        around = [0, 0] * (image.ndim - 1 - axis) + [voxels, voxels]
        image = tf.pad(image, around, value=-torch.inf)
        reach = 1
        while reach < window:
            step = min(reach, window - reach)
            left = image.shape[axis] - step
            image = torch.maximum(image.narrow(axis, 0, left), image.narrow(axis, step, left))
            reach += step
    return image


def _radius(sigma: float) -> int:
    return max(1, reach(sigma))


@lru_cache(maxsize=256)
def blur_matrix(
    size: int, sigma: float, radius: int, device: torch.device, dtype: torch.dtype, slope: bool = False
) -> Tensor:
    """(size, size) matrix whose product with a line of voxels is its Gaussian blur, or that blur's derivative."""
    border: Literal["reflect", "edge"] = "reflect" if size > radius else "edge"
    matrix = band_matrix(size, sigma, radius, border, slope=slope)
    with torch.inference_mode(False):  # kept, and used in training too
        return torch.from_numpy(matrix).to(device=device, dtype=dtype)

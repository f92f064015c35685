"""Structural similarity and peak signal-to-noise ratio inside a region of interest.

Convention of the SSIM: Gaussian window σ = 1.5 voxels cut at radius 5, population covariance, K₁ = .01, K₂ = .03,
data range 1, mirrored at the array's border: scikit-image's `gaussian_weights=True, use_sample_covariance=False`.
The map is computed slice by slice in the axial plane, for thick-slice stacks and volumes alike, so that a stack
with 5 mm slices and a 1 mm volume are measured by the same rule; then it is averaged over the mask. An empty
region has no SSIM and no PSNR: both return NaN, which tables show as `empty` and keep out of means by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from clinfuse.metrics.checks import as_image, as_mask, same_shape
from clinfuse.metrics.surface import bounding_box

PSNR_CAP_DB = 100.0
SIGMA, RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03


def roi_ssim(fused: NDArray[Any], source: NDArray[Any], mask: NDArray[Any] | None = None) -> float:
    """Mean SSIM of the fused image against one source, over a mask.

    Args:
        fused, source: (D, H, W) or (H, W), values in [0, 1].
        mask: the same shape, binary; None is everywhere.

    Returns:
        In [-1, 1]; NaN if the mask is empty.

    Raises:
        GeometryError: shapes differ. InputError: values outside [0, 1], non-finite, or a soft mask.

    Reference: Wang et al. 2004, IEEE TIP 13(4), Eq. 13.
    """
    f, s, m = _checked(fused, source, mask)
    if not m.any():
        return float("nan")
    box = _grown_box(m)
    return float(ssim_map(f[box], s[box])[m[box]].mean(dtype=np.float64))


def ssim_map(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """The SSIM at every voxel, slice-wise over the last two axes; inputs in [0, 1], any leading axes."""
    sigmas = (0.0,) * (x.ndim - 2) + (SIGMA, SIGMA)

    def blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(gaussian_filter(image, sigmas, radius=[0] * (x.ndim - 2) + [RADIUS, RADIUS]))

    mu_x, mu_y = blur(x), blur(y)
    # var_x and var_y enter only as their sum, so one filter serves both
    var_sum = blur(x * x + y * y) - mu_x * mu_x - mu_y * mu_y
    cov = blur(x * y) - mu_x * mu_y
    c1, c2 = np.float32(K1**2), np.float32(K2**2)
    top = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    return np.asarray(top / ((mu_x * mu_x + mu_y * mu_y + c1) * (var_sum + c2)))


def roi_psnr(fused: NDArray[Any], source: NDArray[Any], mask: NDArray[Any] | None = None) -> float:
    """Peak signal-to-noise ratio over a mask, data range 1.

    Args:
        fused, source: one shape, values in [0, 1].
        mask: the same shape, binary; None is everywhere.

    Returns:
        10·log₁₀(1/MSE) in dB, at most `PSNR_CAP_DB` (identical images; a mean must stay finite); NaN if the
        mask is empty.
    """
    f, s, m = _checked(fused, source, mask)
    if not m.any():
        return float("nan")
    return _decibel(float(np.square(f[m] - s[m]).mean(dtype=np.float64)))


def psnr_to_sources(fused: NDArray[Any], sources: Sequence[NDArray[Any]]) -> float:
    """Whole-image PSNR from the mean squared error over all sources, as the fusion field takes it.

    Args:
        fused, sources: one shape, values in [0, 1].

    Returns:
        dB, at most `PSNR_CAP_DB`.
    """
    errors = []
    for source in sources:
        f, s, _ = _checked(fused, source, None)
        errors.append(float(np.square(f - s).mean(dtype=np.float64)))
    return _decibel(float(np.mean(errors)))


def _decibel(mse: float) -> float:
    return PSNR_CAP_DB if mse <= 10 ** (-PSNR_CAP_DB / 10) else float(-10 * np.log10(mse))


def outside_sources(fused: NDArray[Any], *sources: NDArray[Any]) -> float:
    """Root mean square of what lies beyond all sources at a voxel: a measure of invented brightness.

    Args:
        fused, sources: one shape, values in [0, 1].

    Returns:
        In [0, 1]; 0 if every voxel of F lies between the sources' values there.
    """
    f = as_image("the fused image", fused)
    images = [as_image("a source image", source) for source in sources]
    for image in images:
        same_shape(fused=f, source=image)
    high, low = np.maximum.reduce(images), np.minimum.reduce(images)
    beyond = f - np.clip(f, low, high)
    return float(np.sqrt(np.square(beyond, dtype=np.float64).mean()))


def _checked(
    fused: NDArray[Any], source: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    m = np.ones(np.shape(fused), np.bool_) if mask is None else as_mask("the mask", mask)
    same_shape(fused=fused, source=source, mask=m)
    return as_image("the fused image", fused), as_image("the source image", source), m


def _grown_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The mask's box with room for the window in plane, so that cropping changes no value in it."""
    box = list(bounding_box(mask))
    for axis in (-2, -1):
        size = mask.shape[axis]
        box[axis] = slice(max(box[axis].start - RADIUS, 0), min(box[axis].stop + RADIUS, size))
    return tuple(box)

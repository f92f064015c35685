"""FSIM: feature similarity from phase congruency and gradient magnitude, masked, batched, differentiable.

No maintained library has it with a mask. Conventions are those of the authors' program and of piq (luminance
only): log-Gabor filters of 4 scales and 4 orientations, Scharr gradient, greys 0 … 255, average pooling to about
256 pixels on the shorter side. Volumes are measured slice by slice in the axial plane, and the weighted similarity
is pooled over the whole mask, so that a slice counts by its structure inside the mask.

Legend: B batch, O orientations, S scales, H, W pixels.

Reference: Zhang, Zhang, Mou, Zhang 2011, IEEE TIP 20(8); Kovesi 1999, Videre 1(3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clinfuse.errors import GeometryError
from clinfuse.metrics.checks import as_image, as_mask, same_shape

SCALES, ORIENTATIONS = 4, 4
MIN_WAVELENGTH, SCALE_FACTOR, BANDWIDTH = 6.0, 2.0, 0.55
ANGULAR_RATIO, NOISE_SIGMAS, NOISE_RESCALE = 1.2, 2.0, 1.7
CUTOFF, CUTOFF_ORDER = 0.45, 15
T_PHASE, T_GRADIENT = 0.85, 160.0
# one slice at a time stays in a processor's cache; a GPU wants many
SLICES_ON_CPU, SLICES_ON_GPU = 1, 64


def fsim(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """FSIM of a batch of slices, differentiable in both images.

    Args:
        image, reference: (B, 1, H, W) in [0, 1].
        mask: (B, 1, H, W) weights in [0, 1]; None is everywhere. Features are computed on the whole slice; the
            mask only says where similarity counts.

    Returns:
        (B,) in [0, 1]; exactly 1 where the mask is empty, so that 1 − FSIM is no loss there.

    Raises:
        GeometryError: not (B, 1, H, W), or shapes differ.
    """
    if image.ndim != 4 or image.shape[1] != 1 or image.shape != reference.shape:
        raise GeometryError(
            "FSIM takes slices of one channel",
            expected="two tensors (B, 1, H, W)",
            found=f"{tuple(image.shape)} and {tuple(reference.shape)}",
        )
    similar, weight = _similarity(_features(image), _features(reference))
    if mask is not None:
        weight = weight * _pooled(mask)
    total = weight.sum(dim=(1, 2, 3))
    score = (similar * weight).sum(dim=(1, 2, 3)) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, score, torch.ones_like(score))


def roi_fsim(
    fused: NDArray[Any],
    source: NDArray[Any],
    mask: NDArray[Any] | None = None,
    *,
    device: str = "cpu",
) -> float:
    """FSIM of a fused image or volume against one source, pooled over a mask.

    Args:
        fused, source: (D, H, W) or (H, W), values in [0, 1].
        mask: the same shape, binary; None is everywhere.
        device: where to compute, e.g. "cuda".

    Returns:
        In [0, 1]; NaN if the mask is empty.

    Raises:
        GeometryError: shapes differ. InputError: values outside [0, 1], non-finite, or a soft mask.
    """
    return fsim_to_sources(fused, [source], mask, device=device)[0]


def fsim_to_sources(
    fused: NDArray[Any],
    sources: Sequence[NDArray[Any]],
    mask: NDArray[Any] | None = None,
    *,
    device: str = "cpu",
) -> list[float]:
    """`roi_fsim` against several sources, F's features computed once; arguments and values as there."""
    inside = np.ones(np.shape(fused), np.bool_) if mask is None else as_mask("the mask", mask)
    images = [as_image("the fused image", fused), *(as_image("the source image", s) for s in sources)]
    for image in images:
        same_shape(fused=images[0], source=image, mask=inside)
    f, *others, m = (x[None] if x.ndim == 2 else x for x in (*images, inside.astype(np.float32)))
    wanted = np.flatnonzero(m.any(axis=(1, 2)))
    top, bottom = np.zeros(len(others)), np.zeros(len(others))
    at_once = SLICES_ON_CPU if device == "cpu" else SLICES_ON_GPU
    with torch.no_grad():
        for start in range(0, wanted.size, at_once):
            part = wanted[start : start + at_once]
            w = torch.from_numpy(m[part]).to(device)[:, None]
            own = _features(torch.from_numpy(f[part]).to(device)[:, None])
            for k, other in enumerate(others):
                similar, weight = _similarity(
                    own, _features(torch.from_numpy(other[part]).to(device)[:, None])
                )
                weight = weight * _pooled(w)
                top[k] += float((similar * weight).sum(dtype=torch.float64))
                bottom[k] += float(weight.sum(dtype=torch.float64))
    return [float(t / b) if b > 0 else float("nan") for t, b in zip(top, bottom, strict=True)]


def _pooled(x: Tensor) -> Tensor:
    """Average pooling to about 256 pixels on the shorter side."""
    factor = max(1, round(min(x.shape[-2:]) / 256))
    return F.avg_pool2d(x, factor) if factor > 1 else x


def _features(image: Tensor) -> tuple[Tensor, Tensor]:
    """Phase congruency and gradient magnitude of (B, 1, H, W) in [0, 1], after pooling."""
    x = _pooled(image) * 255.0
    return phase_congruency(x), _gradient(x)


def _similarity(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """S_PC·S_G and its weight PC_m at every pixel (B, 1, H', W')."""
    (pc_x, g_x), (pc_y, g_y) = x, y
    s_pc = (2 * pc_x * pc_y + T_PHASE) / (pc_x * pc_x + pc_y * pc_y + T_PHASE)
    s_g = (2 * g_x * g_y + T_GRADIENT) / (g_x * g_x + g_y * g_y + T_GRADIENT)
    return s_pc * s_g, torch.maximum(pc_x, pc_y)


def phase_congruency(image: Tensor) -> Tensor:
    """PC₂ in [0, 1] of (B, 1, H, W) greys 0 … 255, same shape. Reference: Kovesi 1999, with his noise estimate."""
    filters_OSHW, noise_scale_O = _filters(image.shape[-2], image.shape[-1], image.dtype, image.device)
    tiny = torch.finfo(image.dtype).eps
    at_once = SLICES_ON_CPU if image.device.type == "cpu" else SLICES_ON_GPU
    maps = []
    for part in image.split(at_once):
        spectrum = torch.fft.fft2(part)
        kept, amplitude = torch.zeros_like(part), torch.full_like(part, tiny)
        for filters_SHW, noise_scale in zip(filters_OSHW, noise_scale_O, strict=True):
            k, a = _oriented_energy(torch.fft.ifft2(spectrum * filters_SHW), noise_scale, tiny)
            kept, amplitude = kept + k, amplitude + a
        maps.append(kept / amplitude)
    return torch.cat(maps)


def _oriented_energy(response_BSHW: Tensor, noise_scale: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    """Energy above the noise and total amplitude (B, 1, H, W) of one orientation's complex responses."""
    even, odd = response_BSHW.real, response_BSHW.imag
    square = even * even + odd * odd
    sum_even, sum_odd = even.sum(1, keepdim=True), odd.sum(1, keepdim=True)
    # over the scales, the parts along the mean phase add up to its energy; only the parts across it are left
    energy = torch.sqrt(sum_even * sum_even + sum_odd * sum_odd + tiny**2)
    across = (even * sum_odd - odd * sum_even).abs().sum(1, keepdim=True) / energy
    # Rayleigh-distributed noise, its power from the median response of the finest scale
    median = square[:, 0].flatten(1).median(dim=-1).values
    threshold = torch.sqrt(median * noise_scale + tiny**2)[:, None, None, None]
    amplitude = torch.sqrt(square + tiny**2).sum(1, keepdim=True)
    return (energy - across - threshold).clamp_min(0), amplitude


@lru_cache(maxsize=16)
def _filters(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-Gabor filters (O, S, H, W), zero frequency first, and per orientation the noise threshold² per median."""
    v, u = torch.meshgrid(_frequencies(height), _frequencies(width), indexing="ij")
    radius, theta = torch.hypot(u, v), torch.atan2(-v, u)
    low_pass = 1.0 / (1.0 + (radius / CUTOFF) ** (2 * CUTOFF_ORDER))
    radius = torch.where(radius == 0, 1.0, radius)
    radial = []
    for scale in range(SCALES):
        center = 1.0 / (MIN_WAVELENGTH * SCALE_FACTOR**scale)
        band = torch.exp(-(torch.log(radius / center) ** 2) / (2 * math.log(BANDWIDTH) ** 2)) * low_pass
        band[0, 0] = 0.0
        radial.append(band)
    spread = math.pi / (ORIENTATIONS * ANGULAR_RATIO)
    angular = []
    for index in range(ORIENTATIONS):
        angle = theta - index * math.pi / ORIENTATIONS
        apart = torch.atan2(torch.sin(angle), torch.cos(angle)).abs()
        angular.append(torch.exp(-(apart**2) / (2 * spread**2)))
    filters = torch.stack(angular)[:, None] * torch.stack(radial)[None]
    return filters.to(device, dtype), _noise_scale(filters).to(device, dtype)


def _noise_scale(filters: Tensor) -> Tensor:
    """(O,): threshold² = this × median squared response; Kovesi's estimate for PC₁ rescaled by 1.7 for PC₂."""
    height, width = filters.shape[-2:]
    kernels = torch.fft.ifft2(filters).real * math.sqrt(height * width)
    own = (kernels**2).sum(dim=(1, 2, 3))
    cross = torch.zeros_like(own)
    for s in range(SCALES - 1):
        cross += (kernels[:, s : s + 1] * kernels[:, s + 1 :]).sum(dim=(1, 2, 3))
    power_per_median = 1.0 / (math.log(2.0) * (filters[:, 0] ** 2).sum(dim=(1, 2)))
    tau_squared = power_per_median * (own + 2 * cross)
    sigmas = math.sqrt(math.pi / 2) + NOISE_SIGMAS * math.sqrt(2 - math.pi / 2)
    return tau_squared * (sigmas / NOISE_RESCALE) ** 2


def _frequencies(size: int) -> Tensor:
    """Cycles per pixel of each FFT bin, zero first; an odd size spans exactly −½ … ½."""
    steps = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.fft.ifftshift(steps / (size - size % 2 if size > 1 else 1))


def _gradient(image: Tensor) -> Tensor:
    """Scharr gradient magnitude of (B, 1, H, W) greys, zero outside the image."""
    scharr = torch.tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]]) / 16
    kernel = torch.stack([scharr, scharr.T])[:, None].to(image)
    square = F.conv2d(image, kernel, padding=1).square().sum(1, keepdim=True)
    return torch.sqrt(square + torch.finfo(image.dtype).eps)

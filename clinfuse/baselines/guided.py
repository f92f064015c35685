"""Guided-filter fusion: two scales, each weighted by saliency that follows the source's own edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, laplace, uniform_filter

from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

BASE_SIZE = 31
SALIENCY_SIGMA, SALIENCY_RADIUS = 5.0, 5
BASE_RADIUS, BASE_EPS = 45, 0.3
DETAIL_RADIUS, DETAIL_EPS = 7, 1e-6


def guided_filter(case: Case, preset: Preset) -> FloatArray:
    """Slice-wise guided-filter fusion without masks; (D, H, W) in [0, 1].

    Reference: Li, Kang, Hu 2013, IEEE TIP 22(7), with its parameters r₁ = 45, ε₁ = .3, r₂ = 7, ε₂ = 1e-6.
    """
    images = (case.anatomy, case.companion)
    saliency = [_saliency(image) for image in images]
    fused = np.zeros(case.shape, np.float32)
    for radius, eps, layers in (
        (BASE_RADIUS, BASE_EPS, [_box(image, BASE_SIZE // 2) for image in images]),
        (DETAIL_RADIUS, DETAIL_EPS, [image - _box(image, BASE_SIZE // 2) for image in images]),
    ):
        first = _guide(saliency[0] >= saliency[1], images[0], radius, eps)
        second = _guide(saliency[0] < saliency[1], images[1], radius, eps)
        total = np.where(first + second > 1e-6, first + second, 1.0)
        share = np.where(first + second > 1e-6, first / total, 0.5)
        fused += share * layers[0] + (1 - share) * layers[1]
    return np.clip(fused, 0, 1).astype(np.float32)


def _saliency(image: FloatArray) -> FloatArray:
    """Local energy of the Laplacian, in plane."""
    edges = np.stack([np.abs(laplace(s)) for s in image])
    sigmas, radii = (0, SALIENCY_SIGMA, SALIENCY_SIGMA), [0, SALIENCY_RADIUS, SALIENCY_RADIUS]
    return np.asarray(gaussian_filter(edges, sigmas, radius=radii), dtype=np.float32)


def _guide(chosen: NDArray[np.bool_], guide: FloatArray, radius: int, eps: float) -> FloatArray:
    """The choice map smoothed along the guide's edges, clipped to [0, 1]. Reference: He, Sun, Tang 2013, TPAMI."""
    p = chosen.astype(np.float64)
    g = guide.astype(np.float64)
    mean_g, mean_p = _box(g, radius), _box(p, radius)
    variance = _box(g * g, radius) - mean_g**2
    a = (_box(g * p, radius) - mean_g * mean_p) / (variance + eps)
    b = mean_p - a * mean_g
    return np.clip(_box(a, radius) * guide + _box(b, radius), 0, 1).astype(np.float32)


def _box(image: NDArray, radius: int) -> NDArray:
    """Mean over (2r+1)² pixels of each slice."""
    return np.asarray(uniform_filter(image, (0, 2 * radius + 1, 2 * radius + 1), mode="nearest"))

"""What the scanners do to the tissue values: MR bias field and Rician noise, CT blur and correlated noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.fields import Grid, smooth_noise

MR_UNITS = 1000.0
CT_LOWEST_HU = -1024.0


def draw_scanners(rng: np.random.Generator) -> dict[str, Any]:
    """Settings of both scanners for one patient."""
    return {
        "mr_gain": round(float(rng.uniform(0.8, 1.25)), 4),
        "mr_bias": round(float(rng.uniform(0.05, 0.13)), 4),
        "mr_noise": round(float(rng.uniform(0.010, 0.020)), 5),
        "mr_blur_mm": round(float(rng.uniform(0.35, 0.65)), 4),
        "ct_noise_hu": round(float(rng.uniform(3.0, 5.5)), 4),
        "ct_blur_mm": round(float(rng.uniform(0.7, 1.0)), 4),
        "ct_scale": round(float(rng.uniform(0.985, 1.015)), 4),
        "ct_offset_hu": round(float(rng.uniform(-1.0, 1.0)), 4),
    }


def _blur(values: FloatArray, sigma_mm: float, grid: Grid) -> FloatArray:
    """Gaussian blur (D, H, W) of a standard deviation in mm."""
    return ndimage.gaussian_filter(values, [sigma_mm / s for s in grid.spacing], truncate=3.0)


def mr_image(
    signal: FloatArray, grid: Grid, settings: dict[str, Any], rng: np.random.Generator
) -> NDArray[np.int16]:
    """MR magnitude image in a.u. (white matter near 900 on T1) from a noise-free signal, int16 (D, H, W).

    Multiplicative bias exp(b·n), n smooth over 9 cm; Rician noise |s + n₁ + i·n₂|.
    """
    bias = np.exp(np.float32(settings["mr_bias"]) * smooth_noise(grid, rng, 90.0))
    clean = _blur(signal, settings["mr_blur_mm"], grid) * bias
    sigma = np.float32(settings["mr_noise"])
    real = clean + sigma * rng.standard_normal(clean.shape, np.float32)
    imaginary = sigma * rng.standard_normal(clean.shape, np.float32)
    magnitude = np.hypot(real, imaginary) * np.float32(MR_UNITS * settings["mr_gain"])
    return np.clip(np.rint(magnitude), 0, 32767).astype(np.int16)


def ct_image(
    density: FloatArray, grid: Grid, settings: dict[str, Any], rng: np.random.Generator
) -> FloatArray:
    """CT in HU from noise-free HU: point spread, quantum noise correlated over about a voxel, float32 (D, H, W)."""
    blurred = _blur(density, settings["ct_blur_mm"], grid)
    noise = ndimage.gaussian_filter(rng.standard_normal(density.shape, np.float32), 0.6)
    noise *= np.float32(settings["ct_noise_hu"]) / noise.std()
    inside = np.clip((blurred + 1000) / 900, 0.25, 1)
    scaled = blurred * np.where(blurred > 0, np.float32(settings["ct_scale"]), np.float32(1))
    out = scaled + np.float32(settings["ct_offset_hu"]) + noise * inside
    return np.asarray(np.maximum(out, CT_LOWEST_HU), np.float32)


def as_hu(values: FloatArray) -> NDArray[np.int16]:
    """Whole HU in the scanner's range, int16 (D, H, W)."""
    return np.clip(np.rint(values), CT_LOWEST_HU, 3071).astype(np.int16)

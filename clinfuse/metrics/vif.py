"""Visual information fidelity in the pixel domain: how much of a source's information survives in F."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Greys = NDArray[np.float64]
SCALES = 4
NOISE_VARIANCE = 2.0
EPS = 1e-10


def vif(reference: Greys, image: Greys) -> Greys:
    """VIF of an image against its reference, per slice.

    Args:
        reference, image: (D, H, W) greys 0 … 255.

    Returns:
        (D,) ≥ 0: 1 for equal images, above 1 for raised contrast, 1 for a flat reference (nothing to keep).
        Slices below 41 pixels a side have fewer than four scales: those that fit are used.

    Reference: Sheikh, Bovik 2006, IEEE TIP 15(2), pixel-domain form (VIFp), Gaussian windows of 2^(5−s)+1 pixels.
    """
    kept, there = np.zeros(len(reference)), np.zeros(len(reference))
    r, x = reference, image
    for scale in range(1, SCALES + 1):
        size = 2 ** (SCALES - scale + 1) + 1
        if scale > 1 and min(r.shape[1:]) >= size:
            r, x = _valid_blur(r, size)[:, ::2, ::2], _valid_blur(x, size)[:, ::2, ::2]
        if min(r.shape[1:]) < size:
            break
        k, t = _scale(r, x, size)
        kept, there = kept + k, there + t
    return np.divide(kept, there, out=np.ones_like(kept), where=there > 0)


def _scale(r: Greys, x: Greys, size: int) -> tuple[Greys, Greys]:
    """Information kept and information there, per slice, at one scale."""
    mu_r, mu_x = _valid_blur(r, size), _valid_blur(x, size)
    var_r = np.maximum(_valid_blur(r * r, size) - mu_r * mu_r, 0)
    var_x = np.maximum(_valid_blur(x * x, size) - mu_x * mu_x, 0)
    cov = _valid_blur(r * x, size) - mu_r * mu_x
    # x = gain·r + noise of variance rest, within each window
    gain = cov / (var_r + EPS)
    rest = var_x - gain * cov
    flat_r, flat_x = var_r < EPS, var_x < EPS
    gain[flat_r | flat_x] = 0
    rest[flat_r] = var_x[flat_r]
    rest[flat_x] = 0
    var_r[flat_r] = 0
    inverted = gain < 0
    rest[inverted] = var_x[inverted]
    gain[inverted] = 0
    rest = np.maximum(rest, EPS)
    kept = np.log10(1 + gain**2 * var_r / (rest + NOISE_VARIANCE)).sum(axis=(1, 2))
    there = np.log10(1 + var_r / NOISE_VARIANCE).sum(axis=(1, 2))
    return kept, there


def _valid_blur(image: Greys, size: int) -> Greys:
    """Gaussian window of `size` pixels, σ = size/5, in plane, only where the window fits."""
    half = size // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / (size / 5.0)) ** 2)
    taps /= taps.sum()
    rows = correlate1d(image, taps, axis=1)[:, half:-half]
    return np.asarray(correlate1d(rows, taps, axis=2)[:, :, half:-half])

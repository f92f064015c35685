"""Pseudo-colour companions (SPECT, PET): luminance is fused, chrominance waits and is given back afterwards.

Legend: Y luminance, Cb and Cr chrominance (ITU-R BT.601, full range).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KR, KB = 0.299, 0.114
KG = 1 - KR - KB


def is_colour(rgb: NDArray[np.uint8], tolerance: int = 8) -> bool:
    """Whether more than one pixel in a thousand of (…, 3) differs between channels by more than the tolerance."""
    r, g, b = (rgb[..., i].astype(np.int16) for i in range(3))
    return bool(((np.abs(r - g) > tolerance) | (np.abs(g - b) > tolerance)).mean() > 1e-3)


def split_colour(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """RGB (…, 3) uint8 → luminance (…) float32 0–255 and chrominance (2, …) float32 in [-0.5, 0.5].

    Reference: ITU-R BT.601.
    """
    r, g, b = (rgb[..., i].astype(np.float32) for i in range(3))
    y = KR * r + KG * g + KB * b
    cb = (b - y) / (2 * (1 - KB)) / 255
    cr = (r - y) / (2 * (1 - KR)) / 255
    return y, np.stack([cb, cr])


def join_colour(luminance: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Inverse of `split_colour` for a luminance (…) in [0, 1]: RGB (…, 3) uint8, clipped to the gamut."""
    cb, cr = chroma[0], chroma[1]
    r = luminance + 2 * (1 - KR) * cr
    b = luminance + 2 * (1 - KB) * cb
    g = (luminance - KR * r - KB * b) / KG
    return np.clip(np.round(np.stack([r, g, b], axis=-1) * 255), 0, 255).astype(np.uint8)

"""Q^AB/F: how much of the sources' edge strength and direction the fused image keeps (Xydeas, Petrović 2000)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Greys = NDArray[np.float64]
# Γ, κ, σ of the two sigmoids, for edge strength and for orientation
GAMMA_G, KAPPA_G, SIGMA_G = 0.9994, -15.0, 0.5
GAMMA_A, KAPPA_A, SIGMA_A = 0.9879, -22.0, 0.8


def qabf(fused: Greys, a: Greys, c: Greys) -> Greys:
    """Edge preservation per slice.

    Args:
        fused, a, c: (D, H, W) greys 0 … 255, without mask; outside the image counts as 0.

    Returns:
        (D,) in [0, 1): the sources' preservation weighted by their own edge strength (L = 1); 0 without edges.

    Reference: Xydeas, Petrović 2000, Electronics Letters 36(4).
    """
    edges_f, edges_a, edges_c = _edges(fused), _edges(a), _edges(c)
    kept = _preservation(edges_a, edges_f) * edges_a[0] + _preservation(edges_c, edges_f) * edges_c[0]
    there = (edges_a[0] + edges_c[0]).sum(axis=(1, 2))
    return np.asarray(np.divide(kept.sum(axis=(1, 2)), there, out=np.zeros_like(there), where=there > 0))


def _edges(image: Greys) -> tuple[Greys, Greys]:
    """Strength g and orientation α in (−π/2, π/2] of the Sobel gradient, slice by slice; x runs to the left."""
    sx, sy = -_sobel(image, along=2, across=1), _sobel(image, along=1, across=2)
    slope = np.divide(sy, sx, out=np.full_like(sy, np.inf), where=sx != 0)
    return np.hypot(sx, sy), np.arctan(slope)


def _sobel(image: Greys, along: int, across: int) -> Greys:
    """SciPy's own Sobel filter would also smooth from slice to slice."""
    smooth = correlate1d(image, [1.0, 2.0, 1.0], axis=across, mode="constant")
    return np.asarray(correlate1d(smooth, [-1.0, 0.0, 1.0], axis=along, mode="constant"))


def _preservation(source: tuple[Greys, Greys], fused: tuple[Greys, Greys]) -> Greys:
    """Q^{IF} at every pixel: strength and orientation preserved, each through its sigmoid."""
    (g, alpha), (g_f, alpha_f) = source, fused
    larger, smaller = np.maximum(g, g_f), np.minimum(g, g_f)
    ratio = np.divide(smaller, larger, out=np.zeros_like(g), where=larger > 0)
    # the field's evaluator takes the strength itself where both are equal; above 1 both saturate alike
    ratio = np.where(g == g_f, g_f, ratio)
    angle = 1.0 - np.abs(alpha - alpha_f) / (np.pi / 2)
    strength = GAMMA_G / (1.0 + np.exp(KAPPA_G * (ratio - SIGMA_G)))
    direction = GAMMA_A / (1.0 + np.exp(KAPPA_A * (angle - SIGMA_A)))
    return strength * direction

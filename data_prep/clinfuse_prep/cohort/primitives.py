"""Signed distances (mm, negative inside) of the few solids that the head is built of.

All points are arrays `(x, y, z)` in template millimetres (RAS+, MNI152). The heads are near symmetric, so most
callers pass |x| and get both sides at once.
"""

from __future__ import annotations

import numpy as np

from clinfuse.case import FloatArray

Point = tuple[float, float, float]
Coordinates = tuple[FloatArray, FloatArray, FloatArray]


def ellipsoid(at: Coordinates, centre: Point, radii: Point) -> FloatArray:
    """First-order signed distance to an ellipsoid along the axes, float32, mm.

    Reference: k₀(k₀−1)/k₁ with k₀ = |p/r|, k₁ = |p/r²| (Quilez, bound of the ellipsoid distance).
    """
    parts = [(c - m) / r for c, m, r in zip(at, centre, radii, strict=True)]
    k0 = np.sqrt(sum(np.square(p) for p in parts) + np.float32(1e-12))
    k1 = np.sqrt(sum(np.square(p / r) for p, r in zip(parts, radii, strict=True)) + np.float32(1e-12))
    return np.asarray(k0 * (k0 - 1) / k1, np.float32)


def capsule(
    at: Coordinates, start: Point, stop: Point, radius: float, radius_stop: float | None = None
) -> FloatArray:
    """Signed distance to a round-ended tube from `start` to `stop`, its radius varying linearly, float32, mm."""
    end = radius if radius_stop is None else radius_stop
    axis = np.subtract(stop, start).astype(np.float32)
    parts = [c - np.float32(s) for c, s in zip(at, start, strict=True)]
    along = sum(p * a for p, a in zip(parts, axis, strict=True)) / np.float32(np.dot(axis, axis))
    t = np.clip(along, 0, 1)
    distance = np.sqrt(sum(np.square(p - t * a) for p, a in zip(parts, axis, strict=True)))
    return np.asarray(distance - (radius + (end - radius) * t), np.float32)


def ring(at: Coordinates, centre: Point, radius: float, tube: float) -> FloatArray:
    """Signed distance to a horizontal torus (axis z), float32, mm."""
    x, y, z = (c - np.float32(m) for c, m in zip(at, centre, strict=True))
    return np.asarray(np.hypot(np.hypot(x, y) - radius, z) - tube, np.float32)


def union(*distances: FloatArray) -> FloatArray:
    """The union of solids: the smallest distance."""
    out = distances[0]
    for other in distances[1:]:
        out = np.minimum(out, other)
    return out


def smooth_union(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Union of two solids with a rounded joint.

    Reference: polynomial smooth minimum, min(a, b) − h²/(4k) with h = max(k − |a − b|, 0).
    """
    h = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / np.float32(4 * blend_mm)


def smooth_intersection(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Intersection of two solids with a rounded edge, the complement of `smooth_union`."""
    return -smooth_union(-a, -b, blend_mm)

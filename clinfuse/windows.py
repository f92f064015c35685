"""A volume in overlapping axial windows, for devices with less memory than a 3D model needs for all of it at once.

Neighbours share at least a quarter of a window, and each counts there by a weight that falls linearly towards its
border, so that no border is seen. Fewer slices at once take less memory in proportion and see less far; a window of the
whole volume is the volume itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clinfuse.case import FloatArray

MIN_WINDOW = 16
OVERLAP = 0.25


def window_starts(depth: int, window: int | None) -> list[int]:
    """First slices of evenly spread windows that cover `depth` slices; [0] where one window does, or None is given."""
    if window is None or window >= depth:
        return [0]
    count = 1 + math.ceil((depth - window) / (window * (1 - OVERLAP)))
    return [round(start) for start in np.linspace(0, depth - window, count)]


def assembled(starts: Sequence[int], parts: Sequence[FloatArray]) -> FloatArray:
    """The volume of which these are axial parts.

    Args:
        starts: first slice of each part, increasing; together they leave no gap.
        parts: (d, H, W) each.

    Returns:
        (D, H, W) float32: where parts overlap their weighted mean, elsewhere the part itself.
    """
    ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
    if list(starts[1:]) == ends[:-1]:
        return np.concatenate(parts)
    total = np.zeros((ends[-1], *parts[0].shape[1:]), dtype=np.float32)
    weights = np.zeros((ends[-1], 1, 1), dtype=np.float32)
    for start, end, part in zip(starts, ends, parts, strict=True):
        place = np.arange(1, len(part) + 1, dtype=np.float32)
        weight = np.minimum(place, place[::-1])[:, None, None]
        total[start:end] += weight * part
        weights[start:end] += weight
    return np.divide(total, weights, out=total)

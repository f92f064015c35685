"""Rotations in space by three angles, and their slopes; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rotation(angles: Floats) -> Floats:
    """R = R₀R₁R₂, (3, 3), by three angles (rad) about the axes (D, H, W), as clinfuse.method.jitter has it."""
    first, second, third = (_about(axis, angle) for axis, angle in enumerate(angles))
    return np.asarray(first @ second @ third)


def rotation_slopes(angles: Floats) -> list[Floats]:
    """∂R/∂angle of each of the three angles, (3, 3) each, per rad."""
    parts = [_about(axis, angle) for axis, angle in enumerate(angles)]
    slopes = []
    for axis, angle in enumerate(angles):
        ahead = _about(axis, angle + np.pi / 2)
        ahead[axis, axis] = 0
        product = [ahead if axis == other else part for other, part in enumerate(parts)]
        slopes.append(np.asarray(product[0] @ product[1] @ product[2]))
    return slopes


def _about(axis: int, angle: float) -> Floats:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[j, i] = np.sin(angle)
    turn[i, j] = -turn[j, i]
    return turn

"""Distance in mm from chosen grid points to the nearest of a set of grid points, without a full distance transform.

A surface has far fewer elements than the box around it has voxels, and only distances at elements are asked for. So
the squared distance is built up one axis at a time, as in exact distance transforms, but the last axis only at the
points asked for, and the first axis only as far as distances reach:

1. along H: distance to the nearest target of the same column, for every voxel (8-bit, by doubling steps);
2. along D: smallest sum of that squared and the squared step, within a reach estimated from a few points;
3. along W: the same, at the points asked for.

A point whose distance exceeds the reach of 2 is searched in a k-d tree instead. Results are exact to single
precision (relative 1e-6). Legend: D, H, W voxels of the box, N points, T targets.

Reference: Felzenszwalb, Huttenlocher 2012, Theory of Computing 8 (distance transforms of sampled functions).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]
Grid = NDArray[np.float32]
COLUMN_CAP = 127
SAMPLE, SAMPLE_TARGETS = 64, 500
REACH_MARGIN = 1.25
SLAB_VOXELS = 1 << 15


def nearest_mm(
    points: NDArray[np.intp], targets: NDArray[np.intp], shape: tuple[int, ...], spacing: tuple[float, ...]
) -> Floats:
    """Distance of each point to the nearest target.

    Args:
        points: (N,) flat indices into a grid of the shape.
        targets: (T,) flat indices, ascending, at least one.
        shape: (D, H, W) or (H, W) of the grid.
        spacing: mm per axis.

    Returns:
        (N,) mm.
    """
    if len(shape) == 2:
        shape, spacing = (1, *shape), (1.0, *spacing)
    on = np.zeros(shape, np.bool_)
    on.reshape(-1)[targets] = True
    distances = np.zeros(points.size)
    away = np.flatnonzero(~on.reshape(-1)[points])
    if not away.size:
        return distances
    places = np.stack(np.unravel_index(points[away], shape), axis=1)
    reach = int(np.ceil(_estimated_reach(places, targets, shape, spacing) / spacing[0]))
    reach = min(reach, shape[0] - 1)
    low, high = int(places[:, 1].min()), int(places[:, 1].max()) + 1
    squared = _column_and_depth(on, spacing, reach, low, high)
    found = np.sqrt(_along_width(squared, places - (0, low, 0), spacing), dtype=np.float64)
    limit = np.inf if reach == shape[0] - 1 else (reach + 1) * spacing[0]
    far = np.flatnonzero(found > min(limit, (COLUMN_CAP - 1) * spacing[1]))
    if far.size:
        tree = cKDTree(np.stack(np.unravel_index(targets, shape), axis=1) * np.asarray(spacing))
        found[far] = tree.query(places[far] * np.asarray(spacing))[0]
    distances[away] = found
    return distances


def _estimated_reach(
    places: NDArray[np.intp], targets: NDArray[np.intp], shape: tuple[int, ...], spacing: tuple[float, ...]
) -> float:
    """Somewhat more than the largest distance of a few points, in mm; too little costs time, not exactness."""
    scale = np.asarray(spacing)
    few = places[:: max(1, len(places) // SAMPLE)] * scale
    some = (
        np.stack(np.unravel_index(targets[:: max(1, targets.size // SAMPLE_TARGETS)], shape), axis=1) * scale
    )
    return float(REACH_MARGIN * cdist(few, some).min(axis=1).max())


def _column_and_depth(
    on: NDArray[np.bool_], spacing: tuple[float, ...], reach: int, low: int, high: int
) -> Grid:
    """(D, high − low, W) squared mm to the nearest target of the same W, no further than `reach` slices away."""
    columns = _column_distance(on)[:, low:high]
    steps = np.arange(256) * spacing[1]
    table = np.where(np.arange(256) >= COLUMN_CAP, np.inf, steps**2).astype(np.float32)
    depth, height, width = columns.shape
    squared = np.empty(columns.shape, np.float32)
    slab = max(1, SLAB_VOXELS // (depth * width))
    for start in range(0, height, slab):
        own = table[columns[:, start : start + slab]]
        best = own.copy()
        for k in range(1, reach + 1):
            further = own + np.float32((k * spacing[0]) ** 2)
            np.minimum(best[:-k], further[k:], out=best[:-k])
            np.minimum(best[k:], further[:-k], out=best[k:])
        squared[:, start : start + slab] = best
    return squared


def _column_distance(on: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(D, H, W) voxels along H to the nearest target in the same column, at most `COLUMN_CAP`."""
    columns = np.where(on, np.uint8(0), np.uint8(COLUMN_CAP))
    step = 1
    while step < min(on.shape[1], COLUMN_CAP):
        further = columns + np.uint8(step)
        np.minimum(columns[:, step:], further[:, :-step], out=columns[:, step:])
        np.minimum(columns[:, :-step], further[:, step:], out=columns[:, :-step])
        step *= 2
    return columns


def _along_width(squared: Grid, places: NDArray[np.intp], spacing: tuple[float, ...]) -> Grid:
    """Squared mm at the places: smallest over W of step² and what is known there."""
    width = squared.shape[2]
    rows = squared.reshape(-1, width)
    row, w = places[:, 0] * squared.shape[1] + places[:, 1], places[:, 2]
    step = np.arange(width) * spacing[2]
    steps = np.square(step[:, None] - step[None]).astype(np.float32)
    best = np.empty(len(places), np.float32)
    at_once = max(1, SLAB_VOXELS // width)
    for start in range(0, len(places), at_once):
        part = slice(start, start + at_once)
        candidates = rows[row[part]]
        candidates += steps[w[part]]
        candidates.min(axis=1, out=best[part])
    return best

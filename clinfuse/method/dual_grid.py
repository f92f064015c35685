"""Borders of a lesion on the dual grid: border mass, distances in mm, and who is near a border point.

The dual grid's cells are the corners between voxels, 2 voxels per axis meeting in each; the image is closed by a
ring of zeros, so S voxels per axis make S + 1 cells and a mask touching the image's edge has a border there.

Legend: B batch; S spatial shape; C = Π(S+1) cells; N border cells of the reference; M neighbours; K shells.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as tf
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Spacing = tuple[float, ...]
Offset = tuple[int, ...]

MAX_BORDER_CELLS = 2048
"""A reference border of more cells is thinned evenly, its areas scaled up."""
MAX_BALL = 300
"""With more cells than this within τ, they too are looked at along the star only."""
FLAT = 1e-2
"""|∇p| per voxel below which border mass fades out quadratically: noise is no border."""


def voxel_size(spacing: Spacing) -> float:
    """Geometric mean of the spacing, in mm."""
    return math.prod(spacing) ** (1 / len(spacing))


def closed(image: Tensor) -> Tensor:
    """(B, 1, *S) → (B, *(S+2)), with a ring of zeros."""
    return tf.pad(image[:, 0], (1, 1) * (image.ndim - 2))


def border_mass(image: Tensor, spacing: Spacing) -> Tensor:
    """|∇p| × cell volume: the border of every level set of p, averaged over the levels.

    Args:
        image: (B, 1, *S) p in [0, 1].
        spacing: mm per spatial axis.

    Returns: (B, *(S+1)) in mm (2D) or mm² (3D); exactly 0 where p is constant.
    """
    volume = math.prod(spacing)
    slopes: list[Tensor] = []
    mean = closed(image)
    for axis, step in enumerate(spacing, start=1):
        slope = mean.diff(dim=axis) * (volume / step)
        slopes = [*(_pairwise_mean(part, axis) for part in slopes), slope]
        if axis < len(spacing):
            mean = _pairwise_mean(mean, axis)
    squared = slopes[0].square()
    for part in slopes[1:]:
        squared = squared + part.square()
    flat = FLAT * volume / voxel_size(spacing)
    return torch.sqrt(squared + flat**2) - flat


def at_voxels(cells: Tensor) -> Tensor:
    """Mean of each voxel's corners: (B, *(S+1)) → (B, *S)."""
    for axis in range(1, cells.ndim):
        cells = _pairwise_mean(cells, axis)
    return cells


def _pairwise_mean(values: Tensor, axis: int) -> Tensor:
    n = values.shape[axis] - 1
    return 0.5 * (values.narrow(axis, 0, n) + values.narrow(axis, 1, n))


def distance_mm(border: Tensor, spacing: Spacing) -> Tensor:
    """Exact Euclidean distance of each cell to the nearest border cell.

    Args:
        border: (B, *cells) bool.
        spacing: mm per spatial axis.

    Returns: (B, *cells) mm; 0 everywhere for a sample without border.
    """
    if border.is_cuda:
        return distance_by_axis(border, spacing)
    maps = [
        ndimage.distance_transform_edt(~one, sampling=spacing) if one.any() else np.zeros(one.shape)
        for one in border.numpy()
    ]
    return torch.from_numpy(np.stack(maps))


def distance_by_axis(border: Tensor, spacing: Spacing) -> Tensor:
    """`distance_mm` by one min-plus product per axis: for accelerators, where a sequential scan is slow."""
    far = sum((n * s) ** 2 for n, s in zip(border.shape[1:], spacing, strict=True))
    squared = torch.zeros(border.shape, device=border.device).masked_fill(~border, far)
    for axis, step in enumerate(spacing, start=1):
        lines = squared.movedim(axis, -1)
        place = torch.arange(lines.shape[-1], device=border.device, dtype=squared.dtype) * step
        cost = (place[:, None] - place[None, :]).square()
        rows = lines.reshape(-1, len(place))
        best = [
            (part[:, None, :] + cost).amin(dim=-1) for part in rows.split(max(1, 2**27 // len(place) ** 2))
        ]
        squared = torch.cat(best).view(lines.shape).movedim(-1, axis)
    empty = ~border.flatten(1).any(dim=1)
    return squared.masked_fill(empty.view(-1, *[1] * len(spacing)), 0).sqrt()


@lru_cache(maxsize=64)
def star(
    spacing: Spacing, tau_mm: float, reach_mm: float, cells: tuple[int, ...]
) -> tuple[tuple[Offset, ...], tuple[int, ...], tuple[float, ...]]:
    """Where to look around a border point: all cells within τ, farther out 16 (2D) or 98 (3D) directions.

    Args:
        spacing, tau_mm, reach_mm: mm.
        cells: shape of the dual grid.

    Returns: M offsets, nearest first; the indices at which K shells of about equal distance end, τ being one
        of the ends; and the K shells' distances with the reach after them, in mm.
    """
    step = min(spacing)
    near = max(tau_mm, 2 * step) * (1 + 1e-6)
    boxes = itertools.product(*[range(-int(near / s), int(near / s) + 1) for s in spacing])
    ball = [offset for offset in boxes if _length(offset, spacing) <= near]
    found = set(ball) if len(ball) <= MAX_BALL else {(0,) * len(spacing)}
    radius = near if len(ball) <= MAX_BALL else step
    while radius < reach_mm:
        found.update(tuple(int(c) for c in np.rint(radius * ray / spacing)) for ray in _rays(len(spacing)))
        radius += max(step, 0.12 * radius)
    seen = [o for o in found if _length(o, spacing) < reach_mm]
    fitting = [o for o in seen if all(abs(c) < n for c, n in zip(o, cells, strict=True))]
    offsets = sorted(fitting, key=lambda o: (_length(o, spacing), o))
    shells, radii = _shells([_length(o, spacing) for o in offsets], step, tau_mm)
    return tuple(offsets), shells, (*radii, reach_mm)


def _shells(lengths: list[float], step: float, tau_mm: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    shells, radii = [0], [0.0]
    for i, length in enumerate(lengths[1:], start=1):
        after = lengths[i + 1] if i + 1 < len(lengths) else math.inf
        tolerance_ends = length <= tau_mm * (1 + 1e-6) < after
        if tolerance_ends or after - radii[-1] > 0.3 * step + 0.15 * length:
            shells.append(i)
            radii.append(length)
    return tuple(shells), tuple(radii)


def _rays(spatial_dims: int) -> list[NDArray[np.float64]]:
    steps = itertools.product((-2, -1, 0, 1, 2), repeat=spatial_dims)
    return [np.array(v, float) / math.hypot(*v) for v in steps if math.gcd(*v) == 1]


def _length(offset: Offset, spacing: Spacing) -> float:
    return math.hypot(*(o * s for o, s in zip(offset, spacing, strict=True)))


def border_cells(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices (B, N) of the cells with border mass, and their share of it; 0 fills up short rows.

    Args:
        mass: (B, C) border mass of the reference.
    """
    rows = [one.nonzero()[:, 0] for one in mass]
    kept = [row[:: max(1, math.ceil(len(row) / MAX_BORDER_CELLS))] for row in rows]
    index = torch.zeros(len(rows), max(1, *map(len, kept)), dtype=torch.long, device=mass.device)
    area = torch.zeros(index.shape, dtype=mass.dtype, device=mass.device)
    for b, row in enumerate(kept):
        if len(row):
            index[b, : len(row)] = row
            area[b, : len(row)] = mass[b, row] * (mass[b].sum() / mass[b, row].sum())
    return index, area


def neighbours(index: Tensor, offsets: tuple[Offset, ...], cells: tuple[int, ...]) -> Tensor:
    """The cells index + offsets, each named by its first corner's flat index in the closed image.

    Args:
        index: (B, N) flat cell indices.
        offsets: M steps on the dual grid.
        cells: shape of the dual grid.

    Returns: (B, N, M); where a step leaves the grid, the cell itself stands in.
    """
    size = torch.tensor(cells, device=index.device)
    steps = torch.tensor(_strides(cells), device=index.device)
    # as torch.unravel_index, which loads a computer algebra system first
    centre = (index[..., None] // steps % size)[:, :, None]
    place = centre + torch.tensor(offsets, device=index.device)
    outside = ((place < 0) | (place >= size)).any(dim=-1, keepdim=True)
    stride = torch.tensor(_strides(tuple(n + 1 for n in cells)), device=index.device)
    return (torch.where(outside, centre, place) * stride).sum(dim=-1)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """How far apart neighbours along each axis lie in a flat array; the closed image has a voxel more than cells."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def spread(image: Tensor, around: Tensor, ends: tuple[int, ...]) -> Tensor:
    """max p − min p over the neighbours up to the end of each shell.

    Args:
        image: (B, 1, *S) p in [0, 1].
        around: (B, N, M) neighbours, nearest first.
        ends: K indices into M.

    Returns: (B, N, K) in [0, 1]: the share of p's level sets with a border within the shell.
    """
    strides = _strides(tuple(n + 2 for n in image.shape[2:]))
    p = closed(image).flatten(1)
    around = around[..., : ends[-1] + 1]
    return _extreme(p, strides, around, ends) + _extreme(-p, strides, around, ends)


def _extreme(p: Tensor, strides: list[int], around: Tensor, ends: tuple[int, ...]) -> Tensor:
    """The largest of the flat p up to each shell; the voxel is chosen without gradient, then read with it."""
    with torch.no_grad():
        value = p
        for stride in strides:
            value = torch.maximum(value[:, :-stride], value[:, stride:])
        seen = value.gather(1, around.flatten(1)).view(around.shape)
        first = around.gather(2, seen.cummax(dim=2).indices[..., list(ends)]).flatten(1)
        corners = [first + sum(corner) for corner in itertools.product(*[(0, s) for s in strides])]
        voxel = corners[0]
        for other in corners[1:]:
            voxel = torch.where(p.gather(1, other) > p.gather(1, voxel), other, voxel)
    return p.gather(1, voxel).view(*around.shape[:2], len(ends))

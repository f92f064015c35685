"""Distances between the surfaces of two masks, in mm, weighted by surface area; computed once, used by many.

Which surface. A mask's surface is the marching-cubes surface through the midpoints between voxel centres of
different value. It is kept as one element per 2×2×2 neighbourhood that holds both values: the element sits at
the neighbourhood's centre and weighs its area in mm² (2×2 and length in mm for masks of two axes). Distances are
Euclidean between elements, in mm. Counting border voxels instead (MONAI's default) weighs an oblique surface
less than a straight one and shifts with the spacing, so it is not offered. MONAI with `use_subvoxels=True` and
google-deepmind/surface-distance use the same elements; results agree with both to rounding.

The area of an ambiguous neighbourhood is that of its minority side, so a mask and its complement have the same
surface. A mask that touches the border of the array is closed there: outside counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError
from clinfuse.metrics.checks import BoolArray, as_mask, as_spacing, positive, same_shape
from clinfuse.metrics.nearest import nearest_mm

Floats = NDArray[np.float64]
# distances are exact to single precision; a distance that equals the tolerance must count as within
ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Surface elements of a reference and a predicted mask with their distances to the other surface.

    Attributes:
        reference_mm, predicted_mm: (N,), (P,) distance in mm of each element to the other mask's surface;
            infinite if the other mask has none.
        reference_area, predicted_area: (N,), (P,) weight of each element, mm² (mm for two axes).
    """

    reference_mm: Floats
    predicted_mm: Floats
    reference_area: Floats
    predicted_area: Floats

    def overlap(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within the tolerance of the other: NSD@τ, in [0, 1].

        Args:
            tolerance_mm: τ in mm, inclusive.

        Reference: Nikolov et al. 2018, arXiv 1809.04430, surface Dice at tolerance.
        """
        positive("tolerance_mm", tolerance_mm)
        limit = tolerance_mm * (1 + ROUNDING)
        near = float(self.reference_area[self.reference_mm <= limit].sum())
        near += float(self.predicted_area[self.predicted_mm <= limit].sum())
        return near / float(self.reference_area.sum() + self.predicted_area.sum())

    def hausdorff(self, percent: float = 95.0) -> float:
        """The larger of both directed area-weighted percentiles of the distances, mm.

        Args:
            percent: 100 is the Hausdorff distance, 95 the usual robust one.
        """
        return max(
            _weighted_percentile(self.reference_mm, self.reference_area, percent),
            _weighted_percentile(self.predicted_mm, self.predicted_area, percent),
        )

    def mean(self) -> float:
        """Average symmetric surface distance, mm: every element of both surfaces by its area."""
        total = float(self.reference_mm @ self.reference_area + self.predicted_mm @ self.predicted_area)
        return total / float(self.reference_area.sum() + self.predicted_area.sum())


def surface_distances(
    reference: NDArray[Any], predicted: NDArray[Any], spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Distances between the surfaces of two non-empty masks.

    Args:
        reference, predicted: (D, H, W) or (H, W) binary masks on one grid. (1, H, W) counts as (H, W).
        spacing_mm: voxel spacing in mm, one value per axis in array order.

    Raises:
        GeometryError: shapes or spacing do not fit each other.
        InputError: a mask is not binary, or is empty (see `clinfuse.metrics.lesion` for empty masks).
    """
    same_shape(reference=reference, predicted=predicted)
    a, b = as_mask("the reference mask", reference), as_mask("the predicted mask", predicted)
    spacing = as_spacing(spacing_mm, a.ndim)
    if a.ndim == 3 and a.shape[0] == 1:
        a, b, spacing = a[0], b[0], spacing[1:]
    for name, mask in (("reference", a), ("predicted", b)):
        if not mask.any():
            raise InputError(f"the {name} mask has no surface", expected="at least one voxel", found="none")
    box = bounding_box(a, b)
    return distances_in_box(a[box], b[box], spacing)


def distances_in_box(a: BoolArray, b: BoolArray, spacing: tuple[float, ...]) -> SurfaceDistances:
    """`surface_distances` of checked, non-empty masks already cropped to their union."""
    codes_a, codes_b = _neighbour_codes(a), _neighbour_codes(b)
    areas = _code_areas(spacing)
    at_a, at_b = _on_surface(codes_a), _on_surface(codes_b)
    return SurfaceDistances(
        reference_mm=nearest_mm(at_a, at_b, codes_a.shape, spacing),
        predicted_mm=nearest_mm(at_b, at_a, codes_a.shape, spacing),
        reference_area=areas[codes_a.reshape(-1)[at_a]],
        predicted_area=areas[codes_b.reshape(-1)[at_b]],
    )


def bounding_box(*masks: BoolArray) -> tuple[slice, ...]:
    """The smallest box that holds every mask; empty slices if all are empty."""
    box: list[slice] = []
    for axis in range(masks[0].ndim):
        others = tuple(i for i in range(masks[0].ndim) if i != axis)
        cropped = (mask[tuple(box)] for mask in masks)
        hit = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in cropped]))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)


def _weighted_percentile(values: Floats, weights: Floats, percent: float) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    index = int(np.searchsorted(share / share[-1], percent / 100.0))
    return float(values[order[min(index, len(values) - 1)]])


def _on_surface(codes: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Flat indices of the neighbourhoods that hold both values: neither code 0 nor all bits set."""
    highest = np.uint8(2 ** (2**codes.ndim) - 1)
    return np.flatnonzero((codes - np.uint8(1)).reshape(-1) < highest - np.uint8(1))


def _neighbour_codes(mask: BoolArray) -> NDArray[np.uint8]:
    """Each 2×2(×2) neighbourhood's values as bits, the first corner highest; one longer than the mask per axis."""
    codes = np.pad(mask, 1).view(np.uint8)
    for axis, bits in zip(reversed(range(mask.ndim)), (1, 2, 4), strict=False):
        before, after = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        codes = (codes[tuple(before)] << np.uint8(bits)) | codes[tuple(after)]
    return codes


def _code_areas(spacing: tuple[float, ...]) -> Floats:
    """Area in mm² (length in mm) of the surface element of each neighbourhood code."""
    normals = _code_normals(len(spacing))
    scale = np.prod(spacing) / np.asarray(spacing)
    return np.asarray(np.linalg.norm(normals * scale, axis=-1).sum(-1))


@cache
def _code_normals(ndim: int) -> Floats:
    """(codes, elements, ndim) area vectors at unit spacing, zero where a code has fewer elements."""
    if ndim == 2:
        return _contour_normals()
    from skimage.measure import marching_cubes

    bits = 1 << np.arange(7, -1, -1).reshape(2, 2, 2)
    normals = np.zeros((256, 5, 3))
    for code in range(1, 255):
        minority = code if code.bit_count() <= 4 else 255 - code
        block = ((minority & bits) > 0).astype(np.float64)
        vertices, faces, _, _ = marching_cubes(block, 0.5, method="lorensen", allow_degenerate=False)
        p = vertices[faces]
        normals[code, : len(p)] = 0.5 * np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    return normals


def _contour_normals() -> Floats:
    """(16, 2, 2): a straight piece across the square, or a corner cut per isolated corner."""
    normals = np.zeros((16, 2, 2))
    for code in range(1, 15):
        block = np.array([code >> 3 & 1, code >> 2 & 1, code >> 1 & 1, code & 1]).reshape(2, 2)
        if (block[0] == block[1]).all():
            normals[code, 0] = (0.0, 1.0)
        elif (block[:, 0] == block[:, 1]).all():
            normals[code, 0] = (1.0, 0.0)
        else:
            normals[code, : 2 if block.sum() == 2 else 1] = (0.5, 0.5)
    return normals

"""Morphology in millimetres on anisotropic (D, H, W) masks, by exact distance instead of voxel counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def reaches(radius_mm: float, spacing_mm: Spacing) -> Spacing:
    """Spacing to measure distance with: a slice gap wider than the radius counts as infinitely far (in-plane only)."""
    d, h, w = spacing_mm
    return (1e6 if d > radius_mm else d, h, w)


def dilate(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """All voxels within the radius of the mask; slice by slice where slices lie further apart than the radius."""
    out = np.zeros(mask.shape, dtype=bool)
    box = _box(mask, radius_mm, spacing_mm)
    if box is not None:
        out[box] = _distance(~mask[box], radius_mm, spacing_mm) <= radius_mm
    return out


def erode(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Voxels further than the radius from everything outside the mask; the image border is not outside."""
    out = np.zeros(mask.shape, dtype=bool)
    box = _box(mask, radius_mm, spacing_mm)
    if box is not None:
        out[box] = _distance(mask[box], radius_mm, spacing_mm) > radius_mm
    return out


def _box(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> tuple[slice, ...] | None:
    """The mask's bounding box and a margin of the radius, or None when it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return None
    margins = [int(np.ceil(radius_mm / s)) + 1 for s in spacing_mm]
    return tuple(
        slice(max(0, part.start - m), part.stop + m) for part, m in zip(found[0], margins, strict=True)
    )


def opened(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Erosion then dilation: what is thinner than twice the radius goes."""
    return dilate(erode(mask, radius_mm, spacing_mm), radius_mm, spacing_mm) & mask


def closed(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Dilation then erosion: gaps narrower than twice the radius are filled."""
    return erode(dilate(mask, radius_mm, spacing_mm), radius_mm, spacing_mm) | mask


def _distance(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Distance in mm to the nearest False voxel; far away (1e6) where there is none."""
    spacing = reaches(radius_mm, spacing_mm)
    if spacing[0] < 1e6:
        if mask.all():
            return np.full(mask.shape, 1e6)
        return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))
    out = np.empty(mask.shape)
    for index, plane in enumerate(mask):
        out[index] = 1e6 if plane.all() else ndimage.distance_transform_edt(plane, sampling=spacing[1:])
    return out


def largest(mask: Mask) -> Mask:
    """The largest component (6-neighbourhood); an empty mask stays empty."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask.copy()
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def drop_small(mask: Mask, least_ml: float, spacing_mm: Spacing) -> Mask:
    """Without components (26-neighbourhood) of less than the given volume in mL."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count == 0:
        return mask.copy()
    sizes = np.bincount(labels.ravel()) * float(np.prod(spacing_mm)) / 1000
    keep = sizes >= least_ml
    keep[0] = False
    return np.asarray(keep[labels])


def fill_planes(mask: Mask) -> Mask:
    """Holes filled in every axial slice: background that does not reach the slice's border joins the mask."""
    out = np.ones(mask.shape, dtype=bool)
    for index, plane in enumerate(mask):
        labels, _ = ndimage.label(~plane)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside = np.isin(np.arange(labels.max() + 1), border[border > 0])
        out[index] = ~outside[labels]
    return out


def grow_within(seed: Mask, allowed: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Seed grown by the radius, only inside `allowed`, only where it stays connected with the seed."""
    reach = dilate(seed, radius_mm, spacing_mm) & (allowed | seed)
    return np.asarray(ndimage.binary_propagation(seed, mask=reach))

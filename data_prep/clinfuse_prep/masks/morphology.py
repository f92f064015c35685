"""Morphology in millimetres on anisotropic (D, H, W) masks, by exact distance instead of voxel counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
SLAB = 32


def dilate(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """All voxels within the radius of the mask; slice by slice where slices lie further apart than the radius."""
    out = np.zeros(mask.shape, dtype=bool)
    box = _box(mask, radius_mm, spacing_mm)
    if box is not None:
        out[box] = ~_far(~mask[box], radius_mm, spacing_mm)
    return out


def erode(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Voxels further than the radius from everything outside the mask; the image border is not outside."""
    out = np.zeros(mask.shape, dtype=bool)
    box = _box(mask, radius_mm, spacing_mm)
    if box is not None:
        out[box] = _far(mask[box], radius_mm, spacing_mm)
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


def _far(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Voxels of the mask further than the radius from the nearest voxel outside it.

    Worked in slabs of axial slices with a margin of the radius: exact, and memory does not grow with the volume.
    """
    margin = int(radius_mm / spacing_mm[0])
    thick = SLAB if margin else 1
    out = np.empty(mask.shape, dtype=bool)
    for start in range(0, len(mask), thick):
        low, stop = max(0, start - margin), min(start + thick, len(mask))
        slab = mask[low : stop + margin]
        kept = slice(start - low, stop - low)
        if slab.all():
            out[start:stop] = True
        elif margin:
            distance = ndimage.distance_transform_edt(slab, sampling=spacing_mm)
            out[start:stop] = distance[kept] > radius_mm
        else:
            out[start] = ndimage.distance_transform_edt(slab[0], sampling=spacing_mm[1:]) > radius_mm
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

"""What all lesions share: an irregular border, the push on the brain around them, the exact mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from clinfuse.case import FloatArray, MaskArray
from clinfuse_prep.cohort.anatomy import Head
from clinfuse_prep.cohort.fields import Grid, smooth_noise
from clinfuse_prep.cohort.head import base_grid, base_head
from clinfuse_prep.cohort.tissue import Canvas

Painted = tuple[MaskArray, MaskArray]


class Lesion:
    """A lesion drawn in template space and painted on one patient; this base class is the absent lesion.

    Attributes:
        kind: "none", "tumour", "bone_tumour", "haemorrhage", "stroke".
        covers: in words, what the mask covers.
        parameters: JSON-able draws.
        within_brain: whether the mask belongs to the brain mask as well.
        distance: (D, H, W) approximate signed distance to its border, mm, after `shape_on`.
    """

    kind = "none"
    covers = "nothing: this patient has no lesion"
    within_brain = True

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.distance: FloatArray = np.empty(0, np.float32)
        self.pushed: MaskArray | None = None

    def as_dict(self) -> dict[str, Any]:
        """Kind, what the mask covers, and every drawn parameter."""
        return {"kind": self.kind, "mask_covers": self.covers, **self.parameters}

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        """Compute what painting needs at the patient's voxels; `at` (3, D, H, W) template (z, y, x) mm."""

    def push(self, at: FloatArray) -> FloatArray:
        """Template coordinates (3, D, H, W) at which the displaced brain is to be read."""
        return at

    def reshape_head(self, head: Head) -> None:
        """Change the head's fields before painting, e.g. the skin over a growing bone tumour."""

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        """Paint on the finished head; returns the exact mask and the region affected, uint8 (D, H, W)."""
        nothing = np.zeros(head.grid.shape, np.uint8)
        return nothing, nothing.copy()

    def affected(self, touched: FloatArray) -> MaskArray:
        """The touched voxels, those brain was pushed in, and two voxels around (scanner blur)."""
        region = touched > 1e-3
        if self.pushed is not None:
            region = region | (self.pushed > 0)
        return ndimage.binary_dilation(region, iterations=2).astype(np.uint8)


def frame(normal: np.ndarray) -> np.ndarray:
    """(3, 3) orthonormal rows, the first along `normal`."""
    first = normal / np.linalg.norm(normal)
    helper = np.eye(3)[int(np.argmin(np.abs(first)))]
    second = np.cross(first, helper)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def blob(grid: Grid, at: FloatArray, parameters: dict[str, Any], rng: np.random.Generator) -> FloatArray:
    """An ellipsoid with an irregular border: approximate signed distance (D, H, W) in mm, far voxels ≥ 30.

    Args:
        grid, at: the patient's grid and template coordinates (3, D, H, W), (z, y, x) mm.
        parameters: "centre_mm" (x, y, z), "radii_mm" along the rows of "axes", "roughness" in [0, 0.6]: the
            border's standard deviation as a part of the mean radius.
        rng: stream of the border.
    """
    centre = np.asarray(parameters["centre_mm"][::-1], np.float32)
    radii = np.asarray(parameters["radii_mm"], np.float32)
    axes = np.asarray(parameters["axes"], np.float32)[:, ::-1]
    mean = float(radii.mean())
    border = smooth_noise(grid, rng, (1.1 * mean, 0.55 * mean, 0.28 * mean))
    offset = at - centre.reshape(3, 1, 1, 1)
    scaled = np.tensordot(axes / radii[:, None], offset, axes=(1, 0))
    reach = np.sqrt(np.square(scaled).sum(axis=0))
    return np.asarray((reach - 1 + parameters["roughness"] * border) * mean, np.float32)


def radial_push(
    at: FloatArray, centre_mm: list[float], radius_mm: float, strength: float
) -> tuple[FloatArray, MaskArray]:
    """Brain pushed away from a growing lesion, the skull staying where it is.

    A voxel at distance d from the centre reads the brain from d − k·R·(1 − e^{−(d/R)²})·e^{−(d/2R)²}, faded out
    over the last 10 mm before the inner table.

    Returns:
        coordinates (3, D, H, W) mm, and the mask where they differ from `at` by more than 0.02 mm.
    """
    offset = at - np.asarray(centre_mm[::-1], np.float32).reshape(3, 1, 1, 1)
    d = np.sqrt(np.square(offset).sum(axis=0)) + np.float32(1e-3)
    near = d < 4.2 * radius_mm
    r = d[near]
    shift = (
        strength
        * radius_mm
        * (1 - np.exp(-np.square(r / radius_mm)))
        * np.exp(-np.square(r / (2 * radius_mm)))
    )
    index = base_grid().to_index(at[:, near])
    depth = -ndimage.map_coordinates(base_head()["cavity"], index, order=1, mode="nearest", output=np.float32)
    shift *= np.clip(depth / 10, 0, 1)
    out = at.copy()
    for axis in range(3):
        out[axis][near] -= shift * offset[axis][near] / r
    mask = np.zeros(d.shape, np.uint8)
    mask[near] = shift > 0.02
    return out, mask


def rounded(values: Any, digits: int = 4) -> Any:
    """Nested lists of rounded floats, for JSON."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def draw_site(
    rng: np.random.Generator, sites: dict[str, tuple[float, float, float]], jitter_mm: float
) -> tuple[str, str, list[float]]:
    """A place: its name, the side, and its centre (x, y, z) mm with x signed by the side."""
    names = sorted(sites)
    name = names[int(rng.integers(len(names)))]
    side = "left" if rng.random() < 0.5 else "right"
    x, y, z = np.asarray(sites[name]) + rng.uniform(-jitter_mm, jitter_mm, 3)
    return name, side, rounded([-x if side == "left" else x, y, z])

"""Planes: cut a RAS+ volume as radiologists look at it: patient's right on the picture's left, head up.

Axis legend: volumes are (D, H, W) = (inferior→superior, posterior→anterior, left→right). Pictures are
(rows, columns), row 0 at the top. Axial: anterior up, patient's right on the left. Coronal: superior up,
patient's right on the left. Sagittal: superior up, face to the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case

MARGIN_MM = 6.0
THIN_MM = 24.0


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One way to cut a volume.

    Attributes:
        name: axial, coronal or sagittal.
        axis: the volume axis that is held fixed (0 D, 1 H, 2 W).
        rows, columns: the volume axes that run down and across the picture; both run backwards.
        letters: (left, right, top, bottom) letters of the picture's borders.
    """

    name: str
    axis: int
    rows: int
    columns: int
    letters: tuple[str, str, str, str]

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """The picture (rows, columns) of volume (D, H, W) at that index of the fixed axis."""
        return np.take(volume, index, axis=self.axis)[::-1, ::-1]

    def size_mm(
        self, shape: tuple[int, int, int], spacing: tuple[float, float, float]
    ) -> tuple[float, float]:
        """Height and width of the picture in mm, for a volume of that shape and spacing (D, H, W)."""
        return shape[self.rows] * spacing[self.rows], shape[self.columns] * spacing[self.columns]


AXIAL = Plane(name="axial", axis=0, rows=1, columns=2, letters=("R", "L", "A", "P"))
CORONAL = Plane(name="coronal", axis=1, rows=0, columns=2, letters=("R", "L", "S", "I"))
SAGITTAL = Plane(name="sagittal", axis=2, rows=0, columns=1, letters=("A", "P", "S", "I"))
PLANES = (AXIAL, CORONAL, SAGITTAL)


def planes_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Plane, ...]:
    """All three planes, or only the axial one for a slice or a slab thinner than 24 mm."""
    return PLANES if shape[0] * spacing[0] >= THIN_MM and shape[0] > 2 else (AXIAL,)


def centre_of(case: Case) -> tuple[int, int, int]:
    """The voxel (d, h, w) to cut through: in the lesion if there is one, else in the brain, else the middle.

    For a lesion it is the lesion voxel nearest to the lesion's centroid, so that a ring- or crescent-shaped
    lesion is cut too.
    """
    mask = case.lesion if case.has_lesion else case.brain
    if not mask.any():
        d, h, w = (n // 2 for n in case.shape)
        return d, h, w
    points = np.argwhere(mask)
    offsets = (points - points.mean(axis=0)) * np.asarray(case.spacing)
    d, h, w = (int(v) for v in points[np.argmin((offsets**2).sum(axis=1))])
    return d, h, w


def head_box(case: Case, threshold: float = 0.04) -> tuple[slice, slice, slice]:
    """The slices (D, H, W) of the box that holds the head (values above the threshold), plus 6 mm."""
    head = np.maximum(case.anatomy, case.companion) > threshold
    if not head.any():
        return slice(0, case.shape[0]), slice(0, case.shape[1]), slice(0, case.shape[2])
    box = []
    for axis, step_mm in enumerate(case.spacing):
        others = tuple(a for a in range(3) if a != axis)
        share = head.mean(axis=others)
        inside = np.flatnonzero(share > 0.005)
        inside = inside if inside.size else np.flatnonzero(share)
        pad = round(MARGIN_MM / step_mm)
        box.append(slice(max(int(inside[0]) - pad, 0), min(int(inside[-1]) + pad + 1, head.shape[axis])))
    return box[0], box[1], box[2]


def position_mm(case: Case, index: tuple[int, int, int]) -> tuple[float, float, float]:
    """The RAS+ coordinates (x, y, z) in mm of the voxel (d, h, w)."""
    d, h, w = index
    x, y, z, _ = case.affine @ np.array([w, h, d, 1.0])
    return float(x), float(y), float(z)

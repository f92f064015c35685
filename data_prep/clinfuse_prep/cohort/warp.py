"""The known misregistration of CT against MR: drawn once, stored as numbers, applied and undone exactly as stored.

Convention: ct(p) = ct_aligned(p + u(p)) with u(p) = R(p − c) + c + t + e(p) − p; p in mm of the MR frame, R a small
rotation about the head's middle c, t a translation and e a smooth elastic field given on a coarse lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.fields import Grid, Vector3, lattice_over, upsample

MAX_TRANSLATION_MM = 1.5
MAX_ROTATION_DEGREES = 1.5
MAX_ELASTIC_MM = 0.8
ELASTIC_KNOT_MM = 48.0


@dataclass(frozen=True, kw_only=True)
class Misregistration:
    """One drawn warp of the CT frame.

    Attributes:
        translation_mm: t along (x, y, z).
        rotation_degrees: rotation vector (x, y, z): its direction the axis, its length the angle.
        centre_mm: c, (x, y, z).
        elastic_amplitude_mm: what the length of e stays below.
        lattice: where e is given.
        elastic_mm: (3, d, h, w), e along (z, y, x) on the lattice; spline-interpolated between.
    """

    translation_mm: Vector3
    rotation_degrees: Vector3
    centre_mm: Vector3
    elastic_amplitude_mm: float
    lattice: Grid
    elastic_mm: NDArray[np.float32]

    def displacement(self, grid: Grid) -> FloatArray:
        """u(p) at every voxel of a grid: (3, D, H, W) float32, (z, y, x) mm."""
        centre = np.asarray(self.centre_mm[::-1], np.float32).reshape(3, 1, 1, 1)
        shift = np.asarray(self.translation_mm[::-1], np.float32).reshape(3, 1, 1, 1)
        turn = (_rotation_matrix(self.rotation_degrees) - np.eye(3))[::-1, ::-1].astype(np.float32)
        out = np.tensordot(turn, grid.mesh() - centre, axes=(1, 0)) + shift
        for axis in range(3):
            out[axis] += upsample(self.elastic_mm[axis], self.lattice, grid)
        return np.asarray(out, np.float32)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able parameters, complete: `from_dict` gives the same warp back."""
        return {
            "convention": "ct(p) = ct_aligned(p + u(p)), u(p) = R(p-c) + c + t + e(p) - p, mm, RAS+",
            "translation_mm": list(self.translation_mm),
            "rotation_degrees": list(self.rotation_degrees),
            "centre_mm": list(self.centre_mm),
            "elastic_amplitude_mm": self.elastic_amplitude_mm,
            "elastic_lattice": {
                "shape": list(self.lattice.shape),
                "spacing_mm": list(self.lattice.spacing),
                "origin_mm": list(self.lattice.origin),
                "axes": "(component z y x, z, y, x)",
                "values_mm": [round(float(v), 5) for v in self.elastic_mm.ravel()],
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Misregistration:
        """The warp stored in truth.json under "warp"."""
        stored = data["elastic_lattice"]
        lattice = Grid(
            shape=tuple(stored["shape"]),
            spacing=tuple(stored["spacing_mm"]),
            origin=tuple(stored["origin_mm"]),
        )
        values = np.asarray(stored["values_mm"], np.float32).reshape(3, *lattice.shape)
        return cls(
            translation_mm=tuple(data["translation_mm"]),
            rotation_degrees=tuple(data["rotation_degrees"]),
            centre_mm=tuple(data["centre_mm"]),
            elastic_amplitude_mm=float(data["elastic_amplitude_mm"]),
            lattice=lattice,
            elastic_mm=values,
        )


def _rotation_matrix(vector_degrees: Vector3) -> NDArray[np.float64]:
    """(3, 3) rotation on (x, y, z) of a rotation vector in degrees (Rodrigues' formula)."""
    vector = np.deg2rad(np.asarray(vector_degrees, np.float64))
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def _direction(rng: np.random.Generator, length: float) -> Vector3:
    """A vector of the given length in a uniformly random direction, rounded to 1e-5."""
    vector = rng.normal(size=3)
    x, y, z = (round(float(v), 5) for v in length * vector / np.linalg.norm(vector))
    return x, y, z


def draw_misregistration(rng: np.random.Generator, grid: Grid) -> Misregistration:
    """Rigid ≤ 1.5 mm and ≤ 1.5°, elastic ≤ 0.8 mm, over the field of view of `grid`."""
    lattice = lattice_over(grid, ELASTIC_KNOT_MM)
    translation = _direction(rng, float(rng.uniform(0.4, MAX_TRANSLATION_MM)))
    turn = _direction(rng, float(rng.uniform(0.3, MAX_ROTATION_DEGREES)))
    amplitude = round(float(rng.uniform(0.3, MAX_ELASTIC_MM)), 5)
    raw = rng.normal(size=(3, *lattice.shape)).astype(np.float32)
    dense = lattice_over(grid, 6.0)
    longest = np.sqrt(sum(np.square(upsample(part, lattice, dense)) for part in raw)).max()
    scaled = 0.98 * amplitude * raw / longest
    return Misregistration(
        translation_mm=translation,
        rotation_degrees=turn,
        centre_mm=(0.0, -18.0, 5.0),
        elastic_amplitude_mm=amplitude,
        lattice=lattice,
        elastic_mm=np.round(scaled, 5).astype(np.float32),
    )


def resample(
    volume: FloatArray,
    grid: Grid,
    displacement: FloatArray,
    *,
    order: Literal[0, 1, 2, 3, 4, 5] = 3,
    where: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """The volume at p + u(p), spline-interpolated; beyond the grid its border values.

    Args:
        volume: (D, H, W) on `grid`.
        displacement: u, (3, D, H, W), (z, y, x) mm.
        order: of the spline, 0 to 5.
        where: (D, H, W); the other voxels keep the volume's own value, which saves time in air.

    Returns:
        (D, H, W) float32.
    """
    out = np.array(volume, np.float32)
    chosen = np.ones(grid.shape, bool) if where is None else where
    points = np.stack([part[chosen] for part in grid.mesh() + displacement])
    out[chosen] = ndimage.map_coordinates(
        np.asarray(volume, np.float32), grid.to_index(points), order=order, mode="nearest", output=np.float32
    )
    return out


def inverse_displacement(displacement: FloatArray, grid: Grid, *, rounds: int = 6) -> FloatArray:
    """v(p) with u(p + v) = −v, so that `resample(ct, grid, v)` undoes `resample(·, grid, u)`; (3, D, H, W) mm.

    Fixed-point iteration v ← −u(p + v), a contraction as u is smooth and small.
    """
    points = grid.mesh()
    inverse = -displacement
    for _ in range(rounds):
        index = grid.to_index(points + inverse)
        inverse = -np.stack(
            [ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in displacement]
        )
    return inverse

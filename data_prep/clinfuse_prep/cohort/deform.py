"""What makes one head different from another: size, pose and a smooth diffeomorphic deformation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.fields import Grid, lattice_over, smooth_noise, upsample

CENTRE_MM = (0.0, -18.0, 0.0)  # (z, y, x) of the head's middle in the template
LATTICE_MM = 8.0
SQUARINGS = 5


def rotation(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """(3, 3) rotation acting on (z, y, x) vectors: pitch about x, roll about y, yaw about z, in degrees."""
    pitch, roll, yaw = np.deg2rad(degrees)
    about_x = np.array([[np.cos(pitch), np.sin(pitch), 0], [-np.sin(pitch), np.cos(pitch), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(roll), 0, -np.sin(roll)], [0, 1, 0], [np.sin(roll), 0, np.cos(roll)]])
    about_z = np.array([[1, 0, 0], [0, np.cos(yaw), np.sin(yaw)], [0, -np.sin(yaw), np.cos(yaw)]])
    return about_z @ about_y @ about_x


def draw_subject(rng: np.random.Generator) -> dict[str, Any]:
    """Size and pose of one subject: scales (z, y, x), pitch, roll, yaw in degrees, offset (z, y, x) in mm."""
    overall = rng.uniform(0.90, 0.965)
    scale = np.clip(overall * rng.uniform(0.965, 1.035, 3), 0.87, 0.99)
    pose = (rng.uniform(-7, 5), rng.uniform(-3, 3), rng.uniform(-4, 4))
    return {
        "scale": [round(float(s), 5) for s in scale],
        "pose_degrees": [round(float(p), 4) for p in pose],
        "offset_mm": [round(float(o), 4) for o in rng.uniform(-2.5, 2.5, 3)],
        "deformation_mm": round(float(rng.uniform(2.5, 4.2)), 4),
    }


def integrate_velocity(velocity: FloatArray, lattice: Grid) -> FloatArray:
    """Displacement (3, d, h, w) mm of the flow of a stationary velocity field after unit time.

    Reference: scaling and squaring, Arsigny et al., MICCAI 2006: u ← u + u∘(id + u), starting at v/2ᵏ.
    """
    points = lattice.mesh()
    flow = velocity / np.float32(2**SQUARINGS)
    for _ in range(SQUARINGS):
        index = lattice.to_index(points + flow)
        flow = flow + np.stack(
            [ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in flow]
        )
    return flow


def template_coordinates(grid: Grid, subject: dict[str, Any], rng: np.random.Generator) -> FloatArray:
    """Where each voxel of a subject lies in the template: (3, D, H, W) float32, (z, y, x) mm.

    The map is affine (pose, size) followed by a diffeomorphism of about `deformation_mm` amplitude.
    """
    lattice = lattice_over(grid, LATTICE_MM)
    coarse = _nearly_symmetric(np.stack([smooth_noise(lattice, rng, 72.0) for _ in range(3)]))
    fine = np.stack([smooth_noise(lattice, rng, 30.0) for _ in range(3)])
    amplitude = np.float32(subject["deformation_mm"])
    velocity = amplitude * (np.float32(0.8) * coarse + np.float32(0.16) * fine)
    flow = integrate_velocity(velocity, lattice)
    middle = np.asarray(CENTRE_MM).reshape(3, 1, 1, 1)
    turn = rotation(tuple(subject["pose_degrees"])) / np.asarray(subject["scale"])[None, :]
    offset = np.asarray(subject["offset_mm"]).reshape(3, 1, 1, 1)
    moved = lattice.mesh() + flow - middle - offset
    target = np.tensordot(turn, moved, axes=(1, 0)) + middle
    change = (target - lattice.mesh()).astype(np.float32)
    out = grid.mesh()
    for axis in range(3):
        out[axis] += upsample(change[axis], lattice, grid)
    return out


def _nearly_symmetric(velocity: FloatArray) -> FloatArray:
    """A velocity field (3, d, h, w), (z, y, x), three quarters of which is the same on both sides of the head."""
    mirror = velocity[..., ::-1] * np.asarray((1, 1, -1), np.float32).reshape(3, 1, 1, 1)
    return np.float32(0.85) * velocity + np.float32(0.5) * mirror

"""The base head around the template brain: cavity, skull, face, air and orbits as smooth signed distances at 2.5 mm.

Built once per process. Every field is smooth enough that linear interpolation gives sub-voxel surfaces at any
spacing; a patient's head is these fields sampled at deformed coordinates.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort import face
from clinfuse_prep.cohort.fields import Grid, bump, covering
from clinfuse_prep.cohort.primitives import Coordinates, capsule, ellipsoid, smooth_intersection, smooth_union
from clinfuse_prep.cohort.template import load_template

BASE_SPACING_MM = 2.5
BASE_LOW = (-120.0, -150.0, -110.0)
BASE_HIGH = (120.0, 130.0, 110.0)


def base_grid() -> Grid:
    """The 2.5 mm grid of the base fields, wider than any patient's field of view."""
    return covering(BASE_LOW, BASE_HIGH, (BASE_SPACING_MM,) * 3)


def signed_distance(inside: FloatArray, spacing_mm: float) -> FloatArray:
    """Signed distance (D, H, W) in mm, negative inside, to the 0.5 level of a fraction, smoothed to sub-voxel steps."""
    mask = inside >= 0.5
    distance = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    distance -= 0.5 * np.sign(distance)
    return ndimage.gaussian_filter(np.asarray(distance * spacing_mm, np.float32), 1.0)


def _brain_fraction(grid: Grid) -> FloatArray:
    """The template's brain mask (D, H, W) averaged onto the base grid."""
    template = load_template()
    blurred = ndimage.gaussian_filter(template.brain, 0.8)
    index = template.grid.to_index(grid.mesh().reshape(3, -1))
    return ndimage.map_coordinates(blurred, index, order=1, mode="constant").reshape(grid.shape)


def closed_hull(distance: FloatArray, radius_mm: float) -> FloatArray:
    """Signed distance of the morphological closing by a ball, then of a smooth surface, mm."""
    grown = signed_distance((distance < radius_mm).astype(np.float32), BASE_SPACING_MM)
    return ndimage.gaussian_filter(grown + np.float32(radius_mm), 1.5)


def _cavity(at: Coordinates, hull: FloatArray, brain: FloatArray) -> FloatArray:
    """Signed distance to the inner table and dura: brain, 2 mm of fluid, folds closed, spinal canal open below.

    The petrous pyramids and the body of the sphenoid, which the closing would flood, are cut out again.
    """
    canal = capsule(at, (0, -43, -58), (0, -52, -124), 11.5, 9.5)
    cistern = ellipsoid(at, (0, 3, -17), (11, 11, 9))
    room = smooth_union(smooth_union(hull - np.float32(1.8), canal, 6.0), cistern, 4.0)
    bone = smooth_union(
        capsule(at, (62, -31, -43), (15, -15, -35), 9.5, 4.5),
        capsule(at, (0, 10, -40), (0, -16, -50), 13, 6),
        4.0,
    )
    return smooth_intersection(room, -np.maximum(bone, 1.6 - brain), 3.0)


def _thickness(at: Coordinates) -> FloatArray:
    """Calvarial thickness in mm: thick occiput and forehead, thin temporal squama, orbital roof and floor."""
    x, y, z = at
    away = np.abs(x)
    out = np.full(x.shape, 6.4, np.float32)
    out += 3.5 * bump(np.hypot(away, np.hypot((y + 104) / 1.5, (z + 22) / 2)), 18)
    out += 1.6 * bump(np.hypot(away / 2, np.hypot(y - 72, z - 10)), 28)
    out += 1.2 * bump(np.hypot(away - 34, np.hypot(y + 55, z - 62)), 35)
    squama = bump(np.hypot(np.maximum(62 - away, 0), np.hypot((y - 2) / 1.6, (z + 12) / 1.1)), 24)
    floor = 1 / (1 + np.exp((z + 22) / 4)) * (1 / (1 + np.exp((-62 - y) / 5)))
    thin = np.clip(0.60 * squama + 0.62 * floor, 0, 0.64)
    return np.asarray(out * (1 - thin), np.float32)


def _skin(at: Coordinates, hull: FloatArray, thickness: FloatArray) -> FloatArray:
    """Signed distance to the skin: a wide hull of the vault joined with face, neck, nose and ears."""
    x, y, z = at
    vault = hull - thickness - np.float32(8.2)
    vault += 8 / (1 + np.exp((z + 34) / 4)) * (1 / (1 + np.exp((y - 10) / 12)))
    mirrored = (np.abs(x), y, z)
    midface = ellipsoid(mirrored, (0, 16, -60), (72, 68, 62))
    neck = ellipsoid(mirrored, (0, -36, -72), (74, 76, 74))
    throat = capsule(at, (0, -30, -80), (0, -34, -150), 62)
    nose = smooth_union(
        capsule(at, (0, 83, -34), (0, 94, -62), 5.5, 8.5), ellipsoid(at, (0, 86, -64), (17, 13, 9)), 8
    )
    ear = ellipsoid((mirrored[0] + 0.45 * (y + 32), y, z), (83, -32, -44), (5, 17, 27))
    body = smooth_union(smooth_union(vault, midface, 18), smooth_union(neck, throat, 20), 20)
    brow = ellipsoid(mirrored, (27, 68, -24), (22, 14, 9))
    return smooth_union(smooth_union(smooth_union(body, brow, 12), nose, 10), ear, 5)


@lru_cache(maxsize=1)
def base_head() -> dict[str, FloatArray]:
    """All base fields by name, each (D, H, W) float32 on `base_grid()`, read-only.

    Names: brain, cavity, thickness, skin, and those of `face.face_fields`. Distances are in mm, negative inside.
    Skull and face are built for the right half and mirrored, as the template is symmetric.
    """
    grid = base_grid()
    z, y, x = grid.axes
    half = grid.shape[2] // 2
    shape = (*grid.shape[:2], half)
    points: Coordinates = (
        np.broadcast_to(x[None, None, half:], shape),
        np.broadcast_to(y[None, :, None], shape),
        np.broadcast_to(z[:, None, None], shape),
    )
    brain = signed_distance(_brain_fraction(grid), BASE_SPACING_MM)
    hulls = [closed_hull(brain, radius)[..., half:] for radius in (7.0, 26.0)]
    thickness = _thickness(points)
    fields = {
        "brain": brain[..., half:],
        "cavity": _cavity(points, hulls[0], brain[..., half:]),
        "thickness": thickness,
        "skin": _skin(points, hulls[1], thickness),
        **face.face_fields(points),
    }
    out = {name: _mirrored(values) for name, values in fields.items()}
    for values in out.values():
        values.setflags(write=False)
    return out


def _mirrored(right: FloatArray) -> FloatArray:
    """(D, H, W) float32 from its right half (D, H, W/2)."""
    return np.ascontiguousarray(np.concatenate([right[..., ::-1], right], axis=2), np.float32)

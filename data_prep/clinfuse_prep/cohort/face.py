"""Skull base, face, air spaces and orbits as unions of simple solids, placed at their MNI152 millimetres."""

from __future__ import annotations

import numpy as np

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.primitives import Coordinates, capsule, ellipsoid, ring, smooth_union, union


def face_fields(at: Coordinates) -> dict[str, FloatArray]:
    """Signed distances (mm, negative inside) of the parts below the vault, left and right alike.

    Walls thinner than the base grid are not here: `anatomy.bone_distance` adds them at the patient's own voxels.

    Args:
        at: (x, y, z) template coordinates in mm.

    Returns:
        bone: solid facial and basal bone; dense: its ivory part (otic capsule, teeth); air: open airways and midline
        sinuses; antrum: the maxillary sinus; cells: regions honeycombed with air (mastoid, ethmoid); orbit: the
        orbital fat cone; globe, lens: of the eye; muscle: muscles of orbit, jaw and temple.
    """
    mirrored: Coordinates = (np.abs(at[0]), at[1], at[2])
    orbit = smooth_union(
        ellipsoid(mirrored, (31, 56, -37), (19, 17, 18)),
        capsule(mirrored, (30, 54, -36), (13, 22, -30), 13, 4),
        6,
    )
    return {
        "bone": _bone(mirrored),
        "dense": _dense(mirrored),
        "air": _air(mirrored),
        "cells": _cells(mirrored),
        "orbit": orbit,
        "antrum": ellipsoid(mirrored, (29, 43, -66), (15, 19, 16)),
        "globe": ellipsoid(mirrored, (32, 61, -37), (12.2, 12.2, 12.2)),
        "lens": ellipsoid(mirrored, (32, 69, -37), (4.8, 2.4, 4.8)),
        "muscle": _muscle(mirrored),
    }


def _bone(at: Coordinates) -> FloatArray:
    """Sphenoid, petrous and mastoid bone, orbital rim, zygoma, maxilla, mandible, atlas, axis."""
    central = smooth_union(
        ellipsoid(at, (0, 18, -42), (17, 20, 13)), capsule(at, (0, -4, -36), (0, -24, -62), 7.5, 5.5), 8
    )
    petrous = smooth_union(
        capsule(at, (60, -33, -47), (14, -15, -40), 11.5, 5), ellipsoid(at, (57, -38, -56), (12, 15, 19)), 6
    )
    wing = union(
        capsule(at, (12, 22, -22), (50, 28, -22), 3.0, 3.5), capsule(at, (14, 12, -44), (52, 4, -54), 4.0)
    )
    rim = union(
        capsule(at, (51, 50, -22), (50, 47, -46), 3.8),
        capsule(at, (49, 49, -47), (26, 64, -54), 4.2),
        capsule(at, (49, 52, -21), (16, 72, -22), 4.5),
        capsule(at, (53, 46, -50), (68, 8, -54), 3.8, 2.6),
        capsule(at, (68, 8, -54), (64, -14, -52), 2.6, 4.5),
        capsule(at, (14, 72, -26), (11, 66, -54), 2.6),
        capsule(at, (3, 82, -28), (4.5, 87, -46), 2.4),
    )
    maxilla = union(
        capsule(at, (8, 72, -84), (30, 46, -86), 6),
        capsule(at, (0, 70, -82), (0, 34, -80), 3.0),
        capsule(at, (17, 18, -50), (19, 16, -84), 2.6),
    )
    mandible = union(
        capsule(at, (46, -12, -53), (56, -9, -54), 5.2),
        capsule(at, (51, -9, -58), (48, -2, -104), 4.2, 5),
        capsule(at, (50, 12, -62), (48, 6, -104), 3.2, 5),
        capsule(at, (47, 2, -106), (14, 66, -112), 7),
    )
    spine = union(
        ellipsoid(at, (17, -34, -67), (6.5, 12, 6)),
        ring(at, (0, -44, -80), 21, 4.6),
        ellipsoid(at, (22, -38, -80), (9, 10, 8)),
        capsule(at, (0, -28, -68), (0, -32, -112), 5.2, 8),
    )
    frontal = ellipsoid(at, (14, 75, -14), (18, 7.5, 17))
    return union(central, petrous, wing, rim, maxilla, mandible, spine, frontal)


def _dense(at: Coordinates) -> FloatArray:
    """The ivory bone: otic capsule in the petrous pyramid and the cortex beside it, teeth roots."""
    return union(
        capsule(at, (46, -28, -44), (25, -20, -41), 7, 4.5), capsule(at, (8, 74, -92), (28, 48, -94), 4.5)
    )


def _air(at: Coordinates) -> FloatArray:
    """Frontal and sphenoid sinuses, nasal cavity, nasopharynx, ear canal and middle ear."""
    turbinates = union(
        capsule(at, (8, 66, -60), (8, 26, -58), 3.4), capsule(at, (9, 68, -73), (9, 26, -71), 4.2)
    )
    cavity = np.maximum(ellipsoid(at, (7, 52, -60), (8.5, 36, 21)), 1.2 - turbinates)
    return union(
        ellipsoid(at, (11, 76, -15), (12, 4.2, 12)),
        ellipsoid(at, (8, 20, -41), (9, 14, 9)),
        cavity,
        ellipsoid(at, (0, 10, -64), (11, 8, 16)),
        capsule(at, (0, 2, -74), (0, -10, -130), 9, 7),
        capsule(at, (88, -24, -49), (56, -26, -48), 3.4, 2.6),
        ellipsoid(at, (51, -26, -46), (3.2, 5.5, 6)),
    )


def _cells(at: Coordinates) -> FloatArray:
    """Honeycombed bone: ethmoid labyrinth and mastoid."""
    ethmoid = ellipsoid(at, (8, 48, -37), (8.5, 24, 12))
    return union(ethmoid, ellipsoid(at, (58, -41, -55), (9, 13, 15)))


def _muscle(at: Coordinates) -> FloatArray:
    """Recti and optic nerve, temporalis, masseter, pterygoids, neck muscles."""
    eye = union(
        capsule(at, (43.5, 54, -37), (17, 26, -31), 1.7),
        capsule(at, (20.5, 54, -37), (13, 26, -31), 1.9),
        capsule(at, (31, 56, -25.5), (15, 26, -27), 1.8),
        capsule(at, (31, 56, -48), (15, 26, -34), 1.9),
        capsule(at, (31, 50, -36.5), (13, 22, -30), 2.1),
    )
    jaw = union(
        ellipsoid(at, (62, 18, -30), (9, 28, 34)),
        ellipsoid(at, (61, 8, -86), (8, 18, 26)),
        ellipsoid(at, (34, 4, -68), (13, 16, 12)),
        ellipsoid(at, (36, -2, -92), (7, 14, 22)),
    )
    neck = union(
        ellipsoid(at, (20, -84, -84), (17, 14, 26)),
        ellipsoid(at, (24, -66, -84), (16, 12, 18)),
        ellipsoid(at, (58, -52, -86), (9, 17, 26)),
        ellipsoid(at, (13, -14, -92), (9, 7, 26)),
    )
    return union(eye, jaw, neck)

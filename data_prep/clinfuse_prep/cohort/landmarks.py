"""Anatomical landmarks of a simulated patient, known exactly: template points carried through its deformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from clinfuse.errors import InputError
from clinfuse_prep.cohort.deform import template_coordinates
from clinfuse_prep.cohort.fields import Vector3
from clinfuse_prep.cohort.lesions import draw_lesion
from clinfuse_prep.cohort.patient import STREAMS, patient_grid

# MNI152 coordinates (x, y, z) mm
LANDMARKS: dict[str, Vector3] = {
    "anterior commissure": (0.0, 2.0, -4.0),
    "posterior commissure": (0.0, -25.0, -2.0),
    "genu of corpus callosum": (0.0, 30.0, 6.0),
    "splenium of corpus callosum": (0.0, -38.0, 12.0),
    "left frontal horn": (-12.0, 26.0, 6.0),
    "right frontal horn": (12.0, 26.0, 6.0),
}
NEWTON_STEPS = 4


def landmarks_of(truth: Mapping[str, Any]) -> dict[str, Vector3]:
    """Where the landmarks of a simulated patient lie, (x, y, z) mm, RAS+, in the MR's frame.

    The patient's deformation and the shift of the brain by its lesion are drawn again from seed and index, so nothing
    but the account of the patient is needed; exact to about 0.1 mm at 2 mm voxels.

    Args:
        truth: the patient's account (truth.json, or `attrs["truth"]` of its case).

    Raises:
        InputError: the account lacks what identifies the patient.
    """
    try:
        seed, index, subject = int(truth["seed"]), int(truth["index"]), dict(truth["subject"])
        kind, (d, h, w) = str(truth["lesion"]["kind"]), (float(s) for s in truth["spacing_mm"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "this is no account of a simulated patient",
            expected="seed, index, spacing_mm, subject and lesion as in truth.json",
            found=f"{type(error).__name__}: {error}",
        ) from error
    rng = {name: np.random.default_rng([seed, index, number]) for number, name in enumerate(STREAMS)}
    grid = patient_grid((d, h, w))
    at = template_coordinates(grid, subject, rng["deformation"])
    lesion = draw_lesion(kind, rng["lesion"])
    lesion.shape_on(grid, at, rng["lesion"])
    brain_at = lesion.push(at)
    found = {}
    for name, point in LANDMARKS.items():
        index_DHW = _inverse(brain_at, np.asarray(point[::-1]))
        z, y, x = np.asarray(grid.origin) + index_DHW * np.asarray(grid.spacing)
        found[name] = (float(x), float(y), float(z))
    return found


def _inverse(at: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Fractional voxel (3,) at which the map `at` (3, D, H, W) takes the value `point` (3,): nearest, then Newton."""
    distance = sum((at[axis] - np.float32(point[axis])) ** 2 for axis in range(3))
    nearest = np.array(np.unravel_index(int(np.argmin(distance)), at.shape[1:]))
    jacobian = np.empty((3, 3))
    for axis in range(3):
        step = np.zeros(3, int)
        step[axis] = 1
        high, low = tuple(nearest + step), tuple(nearest - step)
        jacobian[:, axis] = (at[(slice(None), *high)] - at[(slice(None), *low)]) / 2
    place = nearest.astype(float)
    for _ in range(NEWTON_STEPS):
        here = [map_coordinates(part, place[:, None], order=1)[0] for part in at]
        place += np.clip(np.linalg.solve(jacobian, point - here), -1, 1)
    return place

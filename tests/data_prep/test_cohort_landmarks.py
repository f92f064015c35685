"""Landmarks of simulated patients: the drawn deformation takes each of them back to its template point."""

from __future__ import annotations

import numpy as np
import pytest
from clinfuse_prep.cohort.deform import draw_subject, template_coordinates
from clinfuse_prep.cohort.landmarks import LANDMARKS, landmarks_of
from clinfuse_prep.cohort.patient import STREAMS, patient_grid, simulate_patient
from scipy.ndimage import map_coordinates

from clinfuse.errors import InputError


def test_the_deformation_takes_them_to_the_template_points() -> None:
    subject = draw_subject(np.random.default_rng([3, 7, STREAMS.index("subject")]))
    truth = {"seed": 3, "index": 7, "subject": subject, "lesion": {"kind": "none"}, "spacing_mm": [2, 2, 2]}
    found = landmarks_of(truth)
    assert list(found) == list(LANDMARKS)
    grid = patient_grid((3.0, 2.5, 3.0))  # another grid than the one they were found on
    rng = np.random.default_rng([3, 7, STREAMS.index("deformation")])
    at = template_coordinates(grid, subject, rng)
    for name, (x, y, z) in found.items():
        place = grid.to_index(np.array([[z], [y], [x]], np.float32))
        back = [float(map_coordinates(at[axis], place, order=3)[0]) for axis in range(3)]
        np.testing.assert_allclose(back[::-1], LANDMARKS[name], atol=0.1)


def test_a_tumour_pushes_them_aside_and_they_stay_in_the_brain() -> None:
    patient = simulate_patient(0, 0, (6.0, 6.0, 6.0), kind="tumour")
    still = simulate_patient(0, 0, (6.0, 6.0, 6.0), kind="none")
    pushed, unpushed = landmarks_of(patient.truth), landmarks_of(still.truth)
    moved = [np.linalg.norm(np.subtract(pushed[name], unpushed[name])) for name in LANDMARKS]
    assert 0.1 < max(moved) < 20
    for x, y, z in pushed.values():
        d, h, w = np.rint(patient.grid.to_index(np.array([[z], [y], [x]], np.float32)))[:, 0].astype(int)
        assert patient.brain[d, h, w]


def test_an_unknown_patient_is_refused() -> None:
    with pytest.raises(InputError, match="no account of a simulated patient"):
        landmarks_of({"seed": 1})

"""What observers do to a training case before the error head learns from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from clinfuse_platform.observer import other_contrast

from clinfuse.case import Case


def test_other_contrast_is_the_seed_s_and_changes_both_companions_alike(tiny_case: Case) -> None:
    case = replace(tiny_case, aligned_companion=tiny_case.companion)
    made = [other_contrast(case, seed) for seed in range(8)]
    again = other_contrast(case, 3)
    np.testing.assert_array_equal(again.companion, made[3].companion)
    np.testing.assert_array_equal(again.anatomy, made[3].anatomy)
    for one in made:
        np.testing.assert_array_equal(one.companion, one.aligned_companion)
        np.testing.assert_array_equal(one.bone, case.bone)
    changed = [not np.allclose(one.companion, case.companion) for one in made]
    assert any(changed) and not all(changed), "a share of them"
    real = replace(case, aligned_companion=None)
    assert other_contrast(real, 3).aligned_companion is None

"""The slab a trial looks at holds every ROI that the case has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clinfuse_sweeps.fusion_evaluator import check_cases
from clinfuse_sweeps.goals import find_goals
from clinfuse_sweeps.slabs import choose_slab, cut

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError


def test_slab_holds_all_regions_and_the_most_lesion(tiny_case: Case) -> None:
    slab = cut(tiny_case, 3)
    assert slab.shape == (3, *tiny_case.shape[1:])
    assert slab.brain.any() and slab.bone.any() and slab.lesion.any()
    start, stop = choose_slab(tiny_case, 1)
    assert stop - start == 1 and tiny_case.lesion[start].any()


def test_a_lesion_at_the_edge_moves_the_slab(tiny_case: Case) -> None:
    lesion = np.zeros_like(tiny_case.lesion)
    lesion[2, 14:18, 12:16] = 1
    moved = replace(tiny_case, lesion=lesion)
    start, stop = choose_slab(moved, 2)
    assert start <= 2 < stop


def test_absent_lesion_and_short_cases(tiny_case: Case) -> None:
    bare = replace(tiny_case, lesion=np.zeros_like(tiny_case.lesion))
    start, stop = choose_slab(bare, 4)
    assert 0 < start < stop < 12  # near the middle, where brain and bone are
    assert cut(bare, 99) is bare
    assert cut(bare, None) is bare
    with pytest.raises(ConfigError, match="slices >= 1"):
        choose_slab(bare, 0)


def test_objectives_without_their_roi_are_refused_before_the_start(tiny_case: Case) -> None:
    bare = replace(tiny_case, lesion=np.zeros_like(tiny_case.lesion))
    check_cases([bare], find_goals(["brain_ssim", "bone_ssim"]), [])
    with pytest.raises(ConfigError, match="lesion_dice cannot be measured"):
        check_cases([bare], find_goals(["brain_ssim", "lesion_dice"]), [])
    with pytest.raises(InputError, match="no validation cases"):
        check_cases([], find_goals(["brain_ssim", "bone_ssim"]), [])

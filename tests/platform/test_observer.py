"""What observers see of a case before the error head learns from it, or the calibration is fitted on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clinfuse_platform.observer import (
    CYCLE,
    Observer,
    Setting,
    as_in_use,
    drawn_slab,
    other_contrast,
    seen,
)
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.store import CaseStore

from clinfuse.alignment import aligned, moved_by
from clinfuse.case import Case
from clinfuse.method.conformal import REGIONS
from clinfuse.method.error_features import COUNT
from clinfuse.method.error_head import ErrorHead

SHAPE, SPACING = (15, 54, 48), (2.7, 2.0, 2.3)
RELEASED = Path(str(resources.files("clinfuse") / "released"))
THETA = np.array([0.8, -1.6, 1.4, 1.0, 0.0, 1.5])


@pytest.fixture(scope="module")
def moved() -> Case:
    """A head large enough to be aligned, whose CT is off by about 3 mm."""
    grid = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)], indexing="ij"
    )
    radius = np.sqrt((grid[0] / 26) ** 2 + (grid[1] / 50) ** 2 + (grid[2] / 44) ** 2)
    brain, bone = radius < 0.75, (radius > 0.82) & (radius < 0.95)
    waves = 0.1 * np.sin(grid[1] / 6) * np.cos(grid[2] / 5)
    anatomy = np.where(brain, 0.5 + waves, 0.05 * (radius < 1))
    companion = np.where(bone, 0.8, 0.0) + brain * (0.1 + 0.5 * waves)
    return Case(
        case_id="1",
        anatomy=anatomy.astype(np.float32),
        companion=np.clip(moved_by(-THETA, companion.astype(np.float32), SPACING), 0, 1),
        brain=brain.astype(np.uint8),
        bone=bone.astype(np.uint8),
        lesion=np.zeros(SHAPE, np.uint8),
        affine=np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0]),
        attrs={"patient": "p", "split": "val"},
    )


def observer_of(case: Case, model: Path, folder: Path) -> Observer:
    store = CaseStore(folder)
    store.write(case)
    store.commit_manifest([manifest_row(case)])
    setting = Setting(model=str(model), data=str(folder), preset="balanced", slices=None, steps=2, seed=0)
    return Observer(setting, threads=1, device="cpu")


def test_a_real_pair_is_judged_as_it_was_aligned(
    moved: Case, model: Path, tmp_path: Path, error_head: Callable[..., ErrorHead]
) -> None:
    """Its reference moves with the CT: the pair laid right beforehand gives the same observation."""
    right = aligned(moved)
    assert right.attrs["alignment"]["used"], right.attrs["alignment"]
    before, after = (
        observer_of(case, model, tmp_path / name) for name, case in (("moved", moved), ("right", right))
    )
    head = error_head(0.1, slope=0.1)
    one, other = before.observe("1", head), after.observe("1", head)
    np.testing.assert_allclose(one.error, other.error, atol=1e-3)
    np.testing.assert_allclose(one.std, other.std, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("looks", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 12, 17, 140, 144])
def test_each_look_at_a_training_case_is_of_another_kind_than_the_one_before(count: int, looks: int) -> None:
    case_ids = [str(number) for number in range(count)]
    asked = seen(case_ids, looks)
    assert asked[:count] == case_ids and len(asked) == looks * count
    for case_id in case_ids:
        kinds = [number % CYCLE for number, one in enumerate(asked) if one == case_id]
        assert len(kinds) == looks and all(a != b for a, b in pairwise(kinds))


def test_a_pair_of_unknown_alignment_teaches_misregistration(
    moved: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = observer_of(moved, RELEASED, tmp_path / "d.zarr")
    rows, again = observer.learn(0, "1"), observer.learn(0, "1")
    assert rows.features.shape == (len(rows.error), COUNT) and (rows.error >= 0).all()
    np.testing.assert_array_equal(rows.features, again.features)
    monkeypatch.setattr("clinfuse_platform.observer.MOST_MM", 0.0)
    still = observer.learn(0, "1")
    bone = REGIONS.index("bone")
    assert rows.error[rows.region == bone].mean() > 1.2 * still.error[still.region == bone].mean()


def test_a_share_of_the_cases_lies_exactly_right(moved: Case, model: Path, tmp_path: Path) -> None:
    """What is stored of the companion does not matter to these; to the others of the stored ones it does."""
    companion = aligned(moved).companion
    right = replace(moved, companion=companion, aligned_companion=companion)
    off = replace(right, companion=np.roll(right.companion, 1, axis=2))
    for number in range(8):
        one, other = (as_in_use(case, number, 0, np.random.default_rng(number)) for case in (off, right))
        assert np.array_equal(one.companion, other.companion) == (number not in (4, 5)), (
            "4 and 5 are as stored, 2, 3, 6, 7 moved from the aligned companion"
        )
        np.testing.assert_array_equal(one.aligned_companion, other.aligned_companion)
    here, there = (
        observer_of(case, model, tmp_path / name) for name, case in (("off", off), ("right", right))
    )
    for number in (0, 4):
        same = np.array_equal(here.learn(number, "1").features, there.learn(number, "1").features)
        assert same == (number == 0), "what is learned follows what is seen"


def test_most_slabs_reach_the_lesion(tiny_case: Case) -> None:
    """A lesion in one slice of a hundred is in a slab of 24 drawn anywhere one time in four, and here in 81 of 100."""
    lesion = np.zeros((100, 4, 4), np.uint8)
    lesion[20] = 1
    image = np.linspace(0, 1, lesion.size, dtype=np.float32).reshape(lesion.shape)
    images = dict.fromkeys(("anatomy", "companion", "aligned_companion"), image)
    case = replace(tiny_case, **images, lesion=lesion, brain=lesion, bone=lesion)
    rng = np.random.default_rng(0)
    slabs = np.array([drawn_slab(case, rng) for _ in range(2000)])
    assert (np.diff(slabs, axis=1) == 24).all() and slabs.min() >= 0 and slabs.max() <= 100
    reached = (slabs[:, 0] <= 20) & (slabs[:, 1] > 20)
    assert 0.78 < reached.mean() < 0.84 and len(set(slabs[reached, 0])) == 21, "at any place that reaches it"
    bare = replace(case, lesion=0 * lesion)
    anywhere = [drawn_slab(bare, rng)[0] for _ in range(2000)]
    assert set(anywhere) == set(range(77)), "without a lesion"
    seen = as_in_use(case, 4, 0, np.random.default_rng(0))
    assert seen.shape == (24, 4, 4) and seen.lesion.any()


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

"""Alignment against drawn motions, its gradient against finite differences, and what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from clinfuse.alignment import (
    ARM_MM,
    LEAST_MM,
    Alignment,
    _points,
    _Seen,
    aligned,
    find_alignment,
    moved_by,
)
from clinfuse.case import Case, FloatArray
from clinfuse.method.jitter import Warp, apply

SPACING = (2.5, 1.6, 1.4)
THETA = np.array([1.2, -1.5, 1.0, 0.9, -1.2, 1.4])


def pictures(shape: tuple[int, int, int] = (24, 60, 56)) -> tuple[FloatArray, FloatArray]:
    """Two images of the same smooth content whose greys do not follow each other monotonically."""
    noise = np.random.default_rng(3).random(shape)
    content = ndimage.gaussian_filter(noise, [3.0 / s for s in SPACING])
    content = (content - content.min()) / np.ptp(content)
    other = 0.5 + 0.45 * np.sin(7 * content)
    return content.astype(np.float32), other.astype(np.float32)


def as_warp(theta: np.ndarray) -> Warp:
    return Warp(
        translation_mm=tuple(theta[:3]), rotation_deg=tuple(np.degrees(theta[3:] / ARM_MM)), elastic_mm=()
    )


def test_moves_as_the_jitter_does() -> None:
    image, _ = pictures()
    by_jitter = apply(as_warp(THETA), torch.from_numpy(image)[None], SPACING)[0].numpy()
    np.testing.assert_allclose(moved_by(THETA, image, SPACING, order=1), by_jitter, atol=1e-5)


def test_gradient_agrees_with_finite_differences() -> None:
    a, b = pictures()
    seen = _Seen(a, b, _points(a, b, 6000, SPACING), SPACING, 3.0)
    _, gradient = seen.information(THETA)
    steps = 1e-4 * np.eye(6)
    differences = [(seen.information(THETA + e)[0] - seen.information(THETA - e)[0]) / 2e-4 for e in steps]
    assert np.corrcoef(gradient, differences)[0, 1] > 0.995
    np.testing.assert_allclose(gradient, differences, atol=0.1 * np.abs(differences).max())


def test_a_motion_too_large_to_undo_is_told() -> None:
    fine = Alignment(theta=np.zeros(6), motion_mm=4.0, doubt_mm=0.2, information=0.5, information_before=0.3)
    far = replace(fine, motion_mm=11.0)
    assert fine.used and fine.finding("c") is None
    told = far.finding("c")
    assert told is not None and not far.used
    assert "11 mm" in told["found"] and "--register" in told["todo"]
    assert replace(far, doubt_mm=3.0).finding("c") is None
    assert replace(far, information=0.3).finding("c") is None


def test_what_is_told_stands_among_the_findings() -> None:
    a, b = pictures()
    theta = np.array([0, 6.0, -3.0, 0, 0, 0])
    moved = moved_by(theta, b, SPACING, order=1)
    blank = np.zeros(a.shape, np.uint8)
    attrs = {"findings": [{"problem": "before"}]}
    case = Case(
        case_id="c",
        anatomy=a,
        companion=np.clip(moved, 0, 1),
        brain=blank,
        bone=blank,
        lesion=blank,
        affine=np.diag([*SPACING[::-1], 1.0]),
        attrs=attrs,
    )
    told = aligned(case).attrs["findings"]
    assert told[0] == {"problem": "before"} and "does not lie" in told[1]["problem"]
    np.testing.assert_array_equal(aligned(case).companion, case.companion)


def test_a_drawn_motion_is_found() -> None:
    a, b = pictures()
    moved = apply(as_warp(THETA), torch.from_numpy(b)[None], SPACING)[0].numpy()
    found = find_alignment(a, moved, SPACING)
    points = _points(a, b, 4000, SPACING)
    there = np.stack(
        [ndimage.map_coordinates(moved_by(found.theta, moved, SPACING), _index(points, a), order=1)]
    )
    here = np.stack([ndimage.map_coordinates(b, _index(points, a), order=1)])
    before = np.stack([ndimage.map_coordinates(moved, _index(points, a), order=1)])
    assert found.used and found.doubt_mm < 0.3
    assert np.abs(there - here).mean() < 0.35 * np.abs(before - here).mean()


def _index(points: np.ndarray, image: FloatArray) -> np.ndarray:
    return np.asarray((points / np.array(SPACING) + (np.array(image.shape) - 1) / 2).T)


def test_what_blurred_images_say_is_not_believed_against_the_sharp_ones() -> None:
    """Fine detail lies in place, coarse content 13 mm off: blurred, the pair seems best where the detail is lost."""
    rng = np.random.default_rng(0)

    def content(width_mm: float) -> FloatArray:
        image = ndimage.gaussian_filter(rng.random((24, 60, 56)), [width_mm / s for s in SPACING])
        return ((image - image.min()) / np.ptp(image)).astype(np.float32)

    fine, coarse = content(1.0), content(8.0)
    off = moved_by(np.array([0, 9.0, -9.0, 0, 0, 0]), coarse, SPACING)
    found = find_alignment((fine + coarse) / 2, np.clip(fine + off, 0, 2) / 2, SPACING)
    assert found.information >= found.information_before and found.motion_mm < LEAST_MM, found


def test_a_slice_moves_in_its_plane_only() -> None:
    a, b = (x[12:13] for x in pictures((24, 120, 110)))
    theta = np.array([0, 1.8, -1.2, 1.0, 0, 0])
    found = find_alignment(a, moved_by(theta, b, SPACING), SPACING)
    assert found.used
    assert found.theta[0] == found.theta[4] == found.theta[5] == 0
    np.testing.assert_allclose(found.theta, -theta, atol=0.4)


def test_aligned_pairs_and_strangers_stay(tiny_case: Case) -> None:
    a, b = pictures()
    assert not find_alignment(a, b, SPACING).used
    assert find_alignment(a, b, SPACING).motion_mm < LEAST_MM
    stranger = np.random.default_rng(8).random(a.shape).astype(np.float32)
    assert not find_alignment(a, stranger, SPACING).used
    flat = np.zeros_like(a)
    assert not find_alignment(flat, flat, SPACING).used
    nuclear = replace(tiny_case, modalities=("MR", "NM"))
    assert aligned(nuclear) is nuclear


@pytest.mark.parametrize("provenance", ["auto:ct-hu>=250", "curated"])
def test_masks_move_with_the_ct_they_were_made_from(provenance: str) -> None:
    a, b = pictures()
    moved = moved_by(THETA, b, SPACING)
    bone = (moved > 0.8).astype(np.uint8)
    none = np.zeros_like(bone)
    case = Case(
        case_id="c1",
        anatomy=a,
        companion=np.clip(moved, 0, 1),
        brain=none,
        bone=bone,
        lesion=none,
        affine=np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0]),
        attrs={"provenance": {"bone": provenance}},
    )
    done = aligned(case)
    assert done.attrs["alignment"]["used"]
    assert aligned(done) is done
    true = b > 0.8
    before, after = (np.mean(m.astype(bool) != true) for m in (case.bone, done.bone))
    assert after < 0.5 * before if provenance.startswith("auto") else after == before
    assert np.abs(done.companion - b).mean() < 0.5 * np.abs(case.companion - b).mean()

"""Reorientation, resampling and the way back, on anisotropic oblique grids with closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from clinfuse_prep.geometry import (
    Grid,
    covered,
    overlap,
    resample,
    resample_mask,
    to_source_grid,
    with_spacing,
)
from make_sources import AFFINE

from clinfuse.case import Case
from clinfuse.errors import GeometryError
from clinfuse.orientation import from_ras, to_ras


def oblique(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    a = np.deg2rad(7)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ np.diag([2.0, 1.5, 3.0])[:, list(order)] * np.array(signs)
    affine[:3, 3] = (11, -7, 5)
    return affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_reorientation_keeps_every_voxel_at_its_place_in_mm(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    affine = oblique(order, signs)
    volume, grid_affine = to_ras(array, affine)
    assert (np.diag(grid_affine)[:3] > 0).all()
    for index in [(0, 0, 0), (4, 2, 1), (1, 5, 6)]:
        place = affine @ np.array([*index, 1.0])
        x, y, z = (np.linalg.inv(grid_affine) @ place)[:3].round().astype(int)
        assert volume[z, y, x] == array[index]
    assert np.array_equal(from_ras(volume, array.shape, affine), array)


def test_resampling_a_linear_field_is_exact() -> None:
    slope = np.array([0.3, -0.2, 0.5])

    def field(grid: Grid) -> np.ndarray:
        d, h, w = grid.shape
        z, y, x = np.meshgrid(range(d), range(h), range(w), indexing="ij")
        mm = np.stack([x, y, z, np.ones_like(x)], -1) @ grid.affine.T
        return (mm[..., :3] @ slope).astype(np.float32)

    source = Grid((14, 15, 16), to_ras(np.zeros((16, 15, 14)), oblique((0, 1, 2), (1, 1, 1)))[1])
    middle = source.affine.copy()
    middle[:3, 3] = (source.affine @ [4, 4, 4, 1])[:3]
    a = np.deg2rad(6)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    middle[:3, :3] = turn @ source.affine[:3, :3] * 0.8
    target = Grid((5, 6, 7), middle)
    assert overlap(source, target) == 1.0
    moved = resample(field(source), source, target, smooth=False)
    assert np.abs(moved - field(target)).max() < 1e-4


def turned_within(source: Grid, scale: float, degrees: float, shape: tuple[int, int, int]) -> Grid:
    """A grid of other spacing, turned about the source's middle."""
    a, affine = np.deg2rad(degrees), np.eye(4)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    affine[:3, :3] = turn @ source.affine[:3, :3] * scale
    middles = [np.array([*[(n - 1) / 2 for n in sizes[::-1]], 1.0]) for sizes in (source.shape, shape)]
    affine[:3, 3] = (source.affine @ middles[0] - affine @ [*middles[1][:3], 0.0])[:3]
    return Grid(shape, affine)


def index_of(grid: Grid, target: Grid) -> np.ndarray:
    """The grid's (z, y, x) index at every voxel centre of the target: (D, H, W, 3)."""
    z, y, x = np.indices(target.shape)
    mm = np.stack([x, y, z, np.ones_like(x)], -1) @ target.affine.T
    return (mm @ np.linalg.inv(grid.affine).T)[..., 2::-1]


def beyond(grid: Grid, index: np.ndarray) -> np.ndarray:
    """How far an index lies beyond the outer voxel borders, in voxels; negative inside."""
    return np.max(np.maximum(-0.5 - index, index - (np.array(grid.shape) - 0.5)), axis=-1)


@pytest.mark.parametrize("order", [0, 1])
def test_thick_slices_reach_to_their_outer_borders(order: Literal[0, 1]) -> None:
    grid = Grid((24, 3, 4), np.diag([1.0, 1.0, 5.0, 1.0]))
    volume = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], grid.shape)
    fine = resample(volume, grid, with_spacing(grid, (1.0, 1.0, 1.0)), order=order, fill=-1000.0)
    places = np.clip((np.arange(120) - 2) / 5, 0, 23)
    expected = places if order else np.round(places)
    assert np.allclose(fine, expected[:, None, None], atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_only_what_lies_outside_the_field_of_view_is_filled(order: Literal[0, 1]) -> None:
    source = Grid((7, 9, 8), to_ras(np.zeros((8, 9, 7)), oblique((0, 1, 2), (1, 1, 1)))[1])
    target = turned_within(source, 0.61, 29.0, (19, 18, 17))
    index = index_of(source, target)
    outside = beyond(source, index) > 0
    assert 0.2 < outside.mean() < 0.8 and np.abs(beyond(source, index)).min() > 1e-3
    slope = np.array([2.0, 30.0, 500.0])
    inside = np.clip(index, 0, np.array(source.shape) - 1)
    values = (inside if order else np.floor(inside + 0.5)) @ slope
    found = resample(
        (np.moveaxis(np.indices(source.shape), 0, -1) @ slope).astype(np.float32),
        source,
        target,
        order=order,
        fill=-1000.0,
        smooth=False,
    )
    assert np.allclose(found, np.where(outside, -1000.0, values), atol=1e-2)
    assert np.array_equal(covered(source, target), ~outside)
    assert overlap(source, target) == pytest.approx(float((~outside).mean()), abs=1e-9)


def test_a_border_that_rounding_moved_is_the_border() -> None:
    grid = Grid((10, 10, 10), oblique((0, 1, 2), (1, 1, 1)))
    half = grid.affine.copy()
    half[:3, 3] = (grid.affine @ [-0.5, -0.5, -0.5, 1])[:3]
    stored = Grid((11, 11, 11), half.astype(np.float32).astype(np.float64))
    assert (beyond(grid, index_of(grid, stored)) > 0).any() and covered(grid, stored).all()
    assert (resample(np.ones(grid.shape, np.float32), grid, stored, fill=-1.0) == 1).all()


def test_a_mask_reaches_to_the_border_of_its_field_of_view_and_no_further() -> None:
    source = Grid((7, 9, 8), to_ras(np.zeros((8, 9, 7)), oblique((0, 1, 2), (1, 1, 1)))[1])
    for target in (with_spacing(source, (0.7, 0.5, 1.1)), turned_within(source, 0.61, 29.0, (19, 18, 17))):
        inside = beyond(source, index_of(source, target)) < 0
        ones = np.ones(source.shape, np.uint8)
        assert np.array_equal(resample_mask(ones, source, target) > 0, inside)
        assert np.array_equal(resample(ones, source, target, order=0) > 0, inside)


def test_a_grid_with_other_spacing_covers_the_same_field_of_view() -> None:
    grid = Grid((10, 12, 8), np.diag([2.0, 3.0, 4.0, 1.0]))
    finer = with_spacing(grid, (2.0, 1.5, 1.0))
    assert finer.shape == (20, 24, 16)
    assert finer.spacing == pytest.approx((2.0, 1.5, 1.0))
    low = [(g.affine @ [-0.5, -0.5, -0.5, 1])[:3] for g in (grid, finer)]
    high = [(g.affine @ [*[n - 0.5 for n in g.shape[::-1]], 1])[:3] for g in (grid, finer)]
    assert np.allclose(low[0], low[1])
    assert np.allclose(high[0], high[1])


def test_masks_keep_their_volume_when_resampled() -> None:
    grid = Grid((20, 20, 20), np.eye(4))
    mask = np.zeros(grid.shape, np.uint8)
    mask[5:15, 4:16, 6:14] = 1
    finer = with_spacing(grid, (0.5, 0.5, 0.5))
    volume = resample_mask(mask, grid, finer).sum() / 8
    assert volume == pytest.approx(mask.sum(), rel=0.06)


def test_outputs_return_to_the_files_own_voxel_order(tiny_case: Case) -> None:
    shape = (28, 32, 12)
    flipped = AFFINE @ np.diag([-1.0, 1, -1, 1])
    volume, affine = to_ras(np.random.default_rng(0).random(shape, np.float32), flipped)
    attrs = {"source_geometry": {"shape": list(shape), "affine": flipped.tolist(), "kind": "nifti"}}
    case = replace(tiny_case, affine=affine, attrs=attrs)
    array, back = to_source_grid(volume, case)
    assert np.array_equal(back, flipped)
    assert np.array_equal(to_ras(array, back)[0], volume)


@pytest.mark.parametrize(
    "spacing_mm", [(2.0, 1.0, 1.5), (7.0, 5.0, 3.0), (9.0, 3.0, 11.0), (13.0, 40.0, 13.0)]
)
@pytest.mark.parametrize("order", [0, 1])
def test_outputs_of_another_spacing_fill_the_source(
    spacing_mm: tuple[float, float, float], order: Literal[0, 1], tiny_case: Case
) -> None:
    shape = (28, 32, 12)
    source, affine = to_ras(np.zeros(shape, np.float32), AFFINE)
    grid = with_spacing(Grid(source.shape, affine), spacing_mm)
    ones = dict.fromkeys(("anatomy", "companion"), np.ones(grid.shape, np.float32))
    masks = dict.fromkeys(("brain", "bone", "lesion"), np.zeros(grid.shape, np.uint8))
    attrs = {"source_geometry": {"shape": list(shape), "affine": AFFINE.tolist()}}
    case = replace(
        tiny_case, affine=grid.affine, attrs=attrs, aligned_companion=None, chroma=None, **ones, **masks
    )
    array, _ = to_source_grid(case.anatomy, case, order=order)
    assert array.shape == shape and np.allclose(array, 1.0)


def test_a_volume_of_another_grid_is_refused(tiny_case: Case) -> None:
    case = replace(tiny_case, attrs={"source_geometry": {"shape": [28, 32, 12], "affine": AFFINE.tolist()}})
    with pytest.raises(GeometryError, match="not on the case's grid"):
        to_source_grid(np.zeros((3, 3, 3), np.float32), case)
    with pytest.raises(GeometryError, match="no source geometry"):
        to_source_grid(tiny_case.anatomy, tiny_case)

"""Reorientation, resampling and the way back, on anisotropic oblique grids with closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from clinfuse_prep.geometry import (
    Grid,
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


def test_a_volume_of_another_grid_is_refused(tiny_case: Case) -> None:
    case = replace(tiny_case, attrs={"source_geometry": {"shape": [28, 32, 12], "affine": AFFINE.tolist()}})
    with pytest.raises(GeometryError, match="not on the case's grid"):
        to_source_grid(np.zeros((3, 3, 3), np.float32), case)
    with pytest.raises(GeometryError, match="no source geometry"):
        to_source_grid(tiny_case.anatomy, tiny_case)

"""Fused slices as PNG: they lie as radiologists look at them, and as the reader of picture slices takes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.geometry import to_source_grid
from clinfuse_prep.raw import RawImage, from_source_array
from clinfuse_prep.slices import read_slices
from maps import Maps
from PIL import Image

from clinfuse.case import Case
from clinfuse.colour import split_colour
from clinfuse.errors import InputError
from clinfuse.outputs import write_fused

TILT = np.deg2rad(25)
OBLIQUE = np.array([[np.cos(TILT), -np.sin(TILT), 0], [np.sin(TILT), np.cos(TILT), 0], [0, 0, 1.0]])
AXES = {
    "RAS": np.diag([2.0, 1.5, 5.0]),
    "LPS": np.diag([-2.0, -1.5, 5.0]),
    "LAI": np.diag([-2.0, 1.5, -5.0]),
    "SAR": np.diag([2.0, 1.5, 5.0])[:, [2, 1, 0]],
    "oblique RAS": OBLIQUE @ np.diag([2.0, 1.5, 5.0]),
    "oblique LPS": OBLIQUE @ np.diag([-2.0, -1.5, 5.0]),
}
WIDTH, HEIGHT = 30, 40


def scan(axes: np.ndarray, slices: int = 1) -> RawImage:
    """A head in 0 … 1 stored along these axes: brighter in front and, more so, on the patient's left."""
    counts = np.array([WIDTH, HEIGHT, slices])
    shape = tuple(counts[np.abs(axes).argmax(axis=0)])
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, _ = np.moveaxis((ijk - (np.array(shape) - 1) / 2) @ axes.T, -1, 0)
    noise = np.random.default_rng(2).integers(0, 20, shape)
    return from_source_array((60 + 60 * (y > 0) + 100 * (x < 0) + noise) / 255, affine, kind="nifti")


def case_of(image: RawImage) -> Case:
    nothing = np.zeros(image.volume.shape, np.uint8)
    return Case(
        case_id="p",
        anatomy=image.volume,
        companion=1 - image.volume,
        brain=nothing,
        bone=nothing,
        lesion=nothing,
        affine=image.grid.affine,
        attrs={"source_geometry": image.source_geometry()},
    )


def maps_of(case: Case) -> Maps:
    return Maps(case.anatomy, case.companion, 0.5 * case.anatomy)


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_front_is_up_and_the_patients_left_on_the_right(axes: np.ndarray, tmp_path: Path) -> None:
    case = case_of(scan(axes))
    paths = write_fused(maps_of(case), case, tmp_path, to_source_grid, image_format="png")
    picture = np.asarray(Image.open(paths["fused"]), float)
    assert picture.shape == (HEIGHT, WIDTH)
    assert picture[:15].mean() > picture[-15:].mean() + 20
    assert picture[:, -12:].mean() > picture[:, :12].mean() + 40
    told = json.loads(paths["sidecar"].read_text())["orientation"]
    assert "left of the picture is the patient's right" in told and "top is anterior" in told


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_every_map_read_back_lies_as_it_did(axes: np.ndarray, tmp_path: Path) -> None:
    case = case_of(scan(axes))
    rgb = np.random.default_rng(0).integers(60, 200, (*case.shape, 3)).astype(np.uint8)
    case = replace(case, chroma=split_colour(rgb)[1])
    maps = replace(maps_of(case), fused=split_colour(rgb)[0] / 255)
    paths = write_fused(maps, case, tmp_path, to_source_grid, image_format="png")
    for key, top in (("fused", 255), ("uncertainty", 65535), ("interval", 65535)):
        stored = read_slices([paths[key]], role=key).volume
        meant = np.round(getattr(maps, key) * top)
        if top > 255:  # the reader stretches deep greys
            meant = (meant - meant.min()) / (meant.max() - meant.min()) * 255
        np.testing.assert_allclose(stored, meant, atol=1e-3)
    colours = np.asarray(Image.open(paths["colour"]), int)
    assert np.abs(colours[::-1, ::-1] - rgb[0]).max() <= 1


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_a_slab_of_a_volume_lies_as_the_whole(axes: np.ndarray, tmp_path: Path) -> None:
    case = case_of(scan(axes, slices=3))
    slab = case.slices(1, 2)
    paths = write_fused(maps_of(slab), slab, tmp_path, image_format="png")
    back = read_slices([paths["fused"]], role="fused").volume
    np.testing.assert_array_equal(back[0], np.round(255 * case.anatomy[1]))


def test_a_picture_comes_back_as_it_came(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in_001.png")
    image = read_slices([tmp_path / "in_001.png"], role="anatomy")
    case = case_of(replace(image, volume=image.volume / 255))
    for name, geometry in (("own", to_source_grid), ("slab", None)):
        paths = write_fused(maps_of(case), case, tmp_path / name, geometry, image_format="png")
        np.testing.assert_array_equal(np.asarray(Image.open(paths["fused"])), pixels)


def test_a_slice_that_is_not_axial_is_refused_and_only_pictures_tell_an_orientation(tmp_path: Path) -> None:
    coronal = case_of(scan(np.diag([2.0, 1.5, 5.0])[:, [0, 2, 1]], slices=9))
    coronal = replace(
        coronal,
        **{
            name: getattr(coronal, name)[:, :1]
            for name in ("anatomy", "companion", "brain", "bone", "lesion")
        },
    )
    with pytest.raises(InputError, match=r"one axial slice.*9 axial slices"):
        write_fused(maps_of(coronal), coronal, tmp_path, image_format="png")
    paths = write_fused(maps_of(coronal), coronal, tmp_path)
    assert "orientation" not in json.loads(paths["sidecar"].read_text())

"""SPECT and PET: the tracer's uptake takes the place of bone, and pseudo-colour goes through prep unharmed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.geometry import to_source_grid
from clinfuse_prep.masks.uptake import uptake_from
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.store import CaseStore
from PIL import Image

from clinfuse.case import Case
from clinfuse.colour import join_colour
from clinfuse.errors import GeometryError
from clinfuse.outputs import ImageFormat, write_fused

SHAPE, SPACING = (14, 60, 50), (3.0, 1.5, 2.0)
COS, SIN = np.cos(np.deg2rad(3.0)), np.sin(np.deg2rad(3.0))
AFFINE = np.array([[2 * COS, 1.5 * SIN, 0, -50], [-2 * SIN, 1.5 * COS, 0, -45], [0, 0, 3, -20], [0, 0, 0, 1]])


def radii(middle: tuple[float, float, float], radius: tuple[float, float, float]) -> np.ndarray:
    grid = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)], indexing="ij"
    )
    return np.sqrt(sum(((g - m) / r) ** 2 for g, m, r in zip(grid, middle, radius, strict=True)))


def spect() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of a brain with a hot sphere inside it, another outside and one hot voxel; the brain; the spheres."""
    rng = np.random.default_rng(0)
    brain = radii((0, 0, 0), (18, 36, 40)) < 1
    hot = (radii((0, 8, 5), (9, 9, 9)) < 1) | (radii((0, -41, 0), (6, 4, 6)) < 1)
    counts = rng.normal(5, 1, SHAPE) + 40 * brain + 20 * (radii((0, 0, 0), (12, 24, 26)) < 1)
    counts[hot] = rng.normal(140, 4, hot.sum())
    counts[1, 2, 2] = 200
    return counts.astype(np.float32), brain, hot


def test_the_uptake_is_what_is_hottest_inside_the_brain_or_not() -> None:
    counts, brain, hot = spect()
    found, how = uptake_from(counts, brain, SPACING)
    assert (found != hot).sum() <= 0.01 * hot.sum() and not found[1, 2, 2], "no single voxel"
    assert how.startswith("nm-otsu>")
    again, _ = uptake_from(1000 * counts + 7, brain, SPACING)
    np.testing.assert_array_equal(again, found, err_msg="the unit does not matter")
    spot = counts.copy()
    spot[7, 30, 25] = 1e7
    assert (uptake_from(spot, brain, SPACING)[0] != found).sum() <= 1, "nor does one voxel"
    flat, how = uptake_from(np.full(SHAPE, 3, np.float32), brain, SPACING)
    assert not flat.any() and how == "nm-none"


def written(volume: np.ndarray, path: Path) -> Path:
    nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), AFFINE), path)
    return path


def test_uptake_takes_the_place_of_bone_and_a_brain_from_a_file_gives_way(tmp_path: Path) -> None:
    counts, brain, hot = spect()
    mri = written(100 * brain + 10 * (radii((0, 0, 0), (20, 42, 46)) < 1), tmp_path / "t1.nii")
    companion, mask = written(counts, tmp_path / "pet.nii"), written(brain, tmp_path / "brain.nii")
    case = prepare_pair(mri, companion, brain=mask, case_id="c", modalities=("MR", "PET"))
    assert ((case.bone > 0) != hot).sum() <= 0.01 * hot.sum()
    np.testing.assert_array_equal(case.brain > 0, brain & (case.bone == 0))
    assert case.attrs["provenance"]["bone"].startswith("auto:nm-otsu")
    own = written(radii((0, 0, 0), (9, 9, 9)) < 1, tmp_path / "roi.nii")
    given = prepare_pair(mri, companion, brain=mask, bone=own, case_id="c", modalities=("MR", "PET"))
    assert given.attrs["provenance"]["bone"] == "curated"
    assert not (given.bone & given.brain).any() and (given.bone | given.brain).sum() == brain.sum()


def coloured(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A slice pair whose SPECT is painted from blue (cold) to orange (hot)."""
    counts, brain, _ = spect()
    heat = np.clip(counts[7] / 160, 0, 1)[::-1]
    rgb = np.stack([heat, 0.5 * heat, 0.6 * (1 - heat) * (heat > 0.15)], axis=-1)
    rgb = np.round(255 * np.repeat(np.repeat(rgb, 3, 0), 3, 1)).astype(np.uint8)
    grey = np.round(120.0 * brain[7][::-1] + 20 * (heat > 0.1)).astype(np.uint8)
    Image.fromarray(np.repeat(np.repeat(grey, 3, 0), 3, 1)).save(tmp_path / "mr.png")
    Image.fromarray(rgb).save(tmp_path / "spect.png")
    return tmp_path / "mr.png", tmp_path / "spect.png", rgb


def test_colour_goes_through_prep_and_store(tmp_path: Path) -> None:
    mri, companion, rgb = coloured(tmp_path)
    case = prepare_pair(mri, companion, case_id="c")
    assert case.modalities[1] == "NM" and case.chroma is not None and case.chroma.shape == (2, *case.shape)
    back = join_colour(case.companion, case.chroma)[0]
    assert np.abs(back[::-1, ::-1].astype(int) - rgb).max() <= 2
    store = CaseStore(tmp_path / "d.zarr")
    store.write(case)
    read = store.read("c")
    np.testing.assert_array_equal(read.chroma, case.chroma)
    assert read.slices(0, 1).chroma.shape == (2, *case.shape)


@dataclass
class Maps:
    """A fused case: the companion itself, without doubt."""

    fused: np.ndarray
    uncertainty: np.ndarray
    interval: None = None
    info: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("image_format", ["png", "nifti"])
def test_the_fused_image_has_the_companion_s_colours_in_the_picture_s_own_order(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    """An F equal to the companion is, in colour, the companion's picture."""
    mri, companion, rgb = coloured(tmp_path)
    case = prepare_pair(mri, companion, case_id="c")
    maps = Maps(fused=case.companion, uncertainty=np.zeros(case.shape, np.float32))
    paths = write_fused(maps, case, tmp_path / "out", to_source_grid, image_format=image_format)
    if image_format == "png":
        shown = np.asarray(Image.open(paths["colour"]))
    else:
        image = nib.load(paths["colour"])
        np.testing.assert_array_equal(image.affine, nib.load(paths["fused"]).affine)
        data = np.asarray(image.dataobj)[:, :, 0]
        shown = np.stack([data[channel] for channel in "RGB"], axis=-1).swapaxes(0, 1)
    assert shown.shape == rgb.shape and np.abs(shown.astype(int) - rgb).max() <= 2
    sidecar = json.loads(paths["sidecar"].read_text())
    assert sidecar["Files"]["colour"] == paths["colour"].name


def test_a_grey_companion_has_no_colour_file(tiny_case: Case, tmp_path: Path) -> None:
    maps = Maps(fused=tiny_case.companion, uncertainty=np.zeros(tiny_case.shape, np.float32))
    assert "colour" not in write_fused(maps, tiny_case, tmp_path)


def test_chrominance_lies_on_the_grid(tiny_case: Case) -> None:
    with pytest.raises(GeometryError, match="chrominance"):
        Case(**{**vars(tiny_case), "chroma": np.zeros((2, 3, 3, 3), np.float32)})

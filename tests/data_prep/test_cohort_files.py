"""The cohort on disk: files, geometry, labels, and a misregistration that is what truth.json says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.cohort import make_cohort
from clinfuse_prep.cohort.fields import Grid
from clinfuse_prep.cohort.make import checked_spacing
from clinfuse_prep.cohort.patient import simulate_patient
from clinfuse_prep.cohort.verb import COHORT
from clinfuse_prep.cohort.warp import (
    MAX_ELASTIC_MM,
    MAX_ROTATION_DEGREES,
    MAX_TRANSLATION_MM,
    Misregistration,
    draw_misregistration,
    inverse_displacement,
    resample,
)
from scipy import ndimage

from clinfuse.errors import ConfigError

SPACING = (5.0, 3.0, 4.0)
NAMES = ("mr", "ct", "ct_aligned", "brain", "bone", "lesion")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients at 5 × 3 × 4 mm (D, H, W)."""
    root = tmp_path_factory.mktemp("cohort")
    seen: list[tuple[str, int, int]] = []
    folders = make_cohort(root, 2, SPACING, 4, lambda *told: seen.append(told))
    assert [f.name for f in folders] == ["sub-01", "sub-02"]
    assert seen == [("sub-01", 1, 2), ("sub-02", 2, 2)]
    return root


def volume(path: Path) -> np.ndarray:
    """A NIfTI file as (D, H, W)."""
    return np.asarray(nib.load(path).dataobj).T


def grid_of(path: Path) -> Grid:
    """The grid that a file's header tells."""
    image = nib.load(path)
    w, h, d = image.shape
    x, y, z = image.header.get_zooms()
    ox, oy, oz = image.affine[:3, 3]
    return Grid(
        shape=(d, h, w), spacing=(float(z), float(y), float(x)), origin=(float(oz), float(oy), float(ox))
    )


def test_all_files_lie_on_one_ras_grid_in_millimetres(cohort: Path) -> None:
    for folder in (cohort / "sub-01", cohort / "sub-02"):
        images = {name: nib.load(folder / f"{name}.nii.gz") for name in NAMES}
        affine = images["mr"].affine
        np.testing.assert_allclose(np.diag(affine)[:3], SPACING[::-1])
        for name, image in images.items():
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            np.testing.assert_array_equal(image.affine, affine)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
            assert image.shape == images["mr"].shape and image.header.get_xyzt_units()[0] == "mm"
            assert image.get_data_dtype() == (np.int16 if name in NAMES[:3] else np.uint8)
            assert b"SIMULATED" in bytes(image.header["descrip"])


def test_everything_says_that_it_is_simulated(cohort: Path) -> None:
    described = json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))
    assert described["simulated"] is True and "simulated" in described["label"]
    assert (
        "nilearn" in described["source"]
        and described["licence"]
        and "Research use only" in described["notice"]
    )
    assert [row["patient"] for row in described["patients"]] == ["sub-01", "sub-02"]
    truth = json.loads((cohort / "sub-02" / "truth.json").read_text(encoding="utf-8"))
    assert truth["simulated"] is True and truth["lesion"]["kind"] == "bone_tumour"
    assert {
        "subject",
        "habitus",
        "scanners",
        "warp",
        "lesion",
        "mr_contrast",
        "seed",
        "index",
    } <= truth.keys()


def test_a_patient_does_not_depend_on_the_others(cohort: Path) -> None:
    alone = simulate_patient(4, 1, SPACING)
    for name in NAMES:
        np.testing.assert_array_equal(volume(cohort / "sub-02" / f"{name}.nii.gz"), getattr(alone, name))


def test_the_cohort_is_the_same_bytes_again(cohort: Path, tmp_path: Path) -> None:
    make_cohort(tmp_path, 1, SPACING, 4)
    for name in NAMES:
        first, again = (root / "sub-01" / f"{name}.nii.gz" for root in (cohort, tmp_path))
        assert first.read_bytes() == again.read_bytes()


def test_the_ct_is_the_aligned_ct_moved_by_the_stored_warp(cohort: Path) -> None:
    for folder in (cohort / "sub-01", cohort / "sub-02"):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        warp = Misregistration.from_dict(truth["warp"])
        ct, aligned = (volume(folder / f"{name}.nii.gz").astype(np.float32) for name in ("ct", "ct_aligned"))
        grid = grid_of(folder / "ct.nii.gz")
        moved = np.clip(resample(aligned, grid, warp.displacement(grid)), -1024, 3071)
        head = ndimage.binary_dilation(aligned > -300)
        assert np.abs(ct - aligned)[head].mean() > 25
        assert np.percentile(np.abs(moved - ct)[head], 99) <= 1.0


def test_undoing_the_known_warp_brings_the_ct_back(cohort: Path) -> None:
    p = simulate_patient(4, 0, (3.0, 3.0, 3.0))
    ct, aligned = (ndimage.gaussian_filter(v.astype(np.float32), 1.2) for v in (p.ct, p.ct_aligned))
    back = resample(ct, p.grid, inverse_displacement(p.warp.displacement(p.grid), p.grid))
    inner = np.zeros(p.grid.shape, bool)
    inner[3:-3, 3:-3, 3:-3] = True
    head = inner & (aligned > -300)
    before, after = (float(np.abs(v - aligned)[head].mean()) for v in (ct, back))
    assert before > 20 and after < 0.2 * before


def test_rigid_part_has_its_closed_form() -> None:
    grid = Grid(shape=(8, 8, 8), spacing=(10.0, 10.0, 10.0), origin=(-35.0, -35.0, -35.0))
    lattice = Grid(shape=(4, 4, 4), spacing=(30.0, 30.0, 30.0), origin=(-45.0, -45.0, -45.0))
    warp = Misregistration(
        translation_mm=(1.0, 0.5, -0.25),
        rotation_degrees=(0.0, 0.0, 90.0),
        centre_mm=(0.0, 0.0, 0.0),
        elastic_amplitude_mm=0.0,
        lattice=lattice,
        elastic_mm=np.zeros((3, 4, 4, 4), np.float32),
    )
    _, y, x = grid.mesh()
    u = warp.displacement(grid)
    np.testing.assert_allclose(u[2] + x, -y + 1.0, atol=1e-4)
    np.testing.assert_allclose(u[1] + y, x + 0.5, atol=1e-4)
    np.testing.assert_allclose(u[0], -0.25, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_warps_keep_their_limits_and_survive_json(seed: int) -> None:
    grid = Grid(shape=(24, 30, 24), spacing=(8.0, 8.0, 8.0), origin=(-84.0, -124.0, -92.0))
    warp = draw_misregistration(np.random.default_rng(seed), grid)
    assert np.linalg.norm(warp.translation_mm) <= MAX_TRANSLATION_MM + 1e-4
    assert np.linalg.norm(warp.rotation_degrees) <= MAX_ROTATION_DEGREES + 1e-4
    rigid = Misregistration(**{**warp.__dict__, "elastic_mm": np.zeros_like(warp.elastic_mm)})
    elastic = warp.displacement(grid) - rigid.displacement(grid)
    assert np.linalg.norm(elastic, axis=0).max() <= MAX_ELASTIC_MM
    again = Misregistration.from_dict(json.loads(json.dumps(warp.as_dict())))
    np.testing.assert_array_equal(again.displacement(grid), warp.displacement(grid))


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), (1.0, 2.0), 50.0])
def test_unusable_spacings_are_refused(spacing: float | tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spacing"):
        make_cohort(tmp_path / "none", 1, spacing)
    assert not (tmp_path / "none").exists()


def test_unusable_counts_and_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="number of patients"):
        make_cohort(tmp_path, 0)
    with pytest.raises(ConfigError, match="seed"):
        make_cohort(tmp_path, 1, seed=-1)
    assert checked_spacing(2) == (2.0, 2.0, 2.0) and checked_spacing([1, 2, 3]) == (1.0, 2.0, 3.0)


def test_the_verb_writes_a_cohort(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    COHORT.add_arguments(parser)
    args = parser.parse_args(["--out", str(tmp_path / "c"), "--patients", "1", "--spacing", "6"])
    result = COHORT.run(args)
    assert result == {"result": str(tmp_path / "c"), "patients": 1, "simulated": True}
    assert (tmp_path / "c" / "sub-01" / "mr.nii.gz").is_file() and not COHORT.needs_ray

"""Sheared grids, as of a CT whose gantry tilt nobody undid: covered by upright ones, registered, prepared in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.bias import n4
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.geometry import Grid, covered, resample, to_source_grid, with_spacing
from clinfuse_prep.itk import to_itk
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.raw import RawImage
from clinfuse_prep.registration import _working, register
from clinfuse_prep.shear import shear_mm, upright
from make_sources import write_nifti

from clinfuse.errors import GeometryError

SHAPE, SPACING = (28, 40, 36), (6.0, 5.0, 5.0)


def rotation(degrees: float, axis: int) -> np.ndarray:
    a, turn = np.deg2rad(degrees), np.eye(4)
    one, two = (axis + 1) % 3, (axis + 2) % 3
    turn[[one, two], [one, two]] = np.cos(a)
    turn[one, two], turn[two, one] = -np.sin(a), np.sin(a)
    return turn


def grid_of(tilt_degrees: float, turn: np.ndarray | None = None) -> Grid:
    """A grid about the origin whose slices are shifted along y as a tilted gantry shifts them."""
    axes = np.diag([*SPACING[::-1], 1.0])
    axes[1, 2] = SPACING[0] * np.tan(np.deg2rad(tilt_degrees))
    axes = (np.eye(4) if turn is None else turn) @ axes
    axes[:3, 3] = -axes[:3, :3] @ ((np.array(SHAPE[::-1]) - 1) / 2)
    return Grid(SHAPE, axes)


def places(grid: Grid) -> np.ndarray:
    """RAS+ mm of every voxel centre, (D, H, W, 4)."""
    z, y, x = np.indices(grid.shape)
    return np.asarray(np.stack([x, y, z, np.ones_like(x)], -1) @ grid.affine.T)


def heads(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """MR and CT (D, H, W) of an ellipsoidal head about the origin with a spot on one side."""
    x, y, z = np.moveaxis(places(grid)[..., :3], -1, 0)
    radius = np.sqrt((z / 55) ** 2 + (y / 72) ** 2 + (x / 58) ** 2)
    brain, skull, skin = radius < 0.8, (radius >= 0.8) & (radius < 1), (radius >= 1) & (radius < 1.15)
    spot = np.sqrt((z - 12) ** 2 + (y - 28) ** 2 + (x + 20) ** 2) < 16
    mr, ct = 500 * brain + 300 * spot + 700 * skin, np.where(radius < 1.15, 35.0, -1000.0) + 900 * skull
    return mr.astype(np.float32), ct.astype(np.float32)


def leaning(grid: Grid, tilt_degrees: float, step_mm: float) -> Grid:
    """The grid with slices of another distance that a tilted gantry shifts along y, none at the middle."""
    made = with_spacing(grid, (step_mm, *grid.spacing[1:]))
    lean = step_mm * np.tan(np.deg2rad(tilt_degrees))
    made.affine[1, 2:] += (lean, -lean * (made.shape[0] - 1) / 2)
    return made


def error_mm(found: np.ndarray, true: np.ndarray) -> float:
    """Mean distance at a head's corners between where two 4×4 maps lay them."""
    corners = np.array([[x, y, z, 1.0] for x in (-40, 40) for y in (-50, 50) for z in (-35, 35)])
    return float(np.linalg.norm((corners @ (found - true).T)[:, :3], axis=1).mean())


def test_shear_is_measured_by_closed_form() -> None:
    """Squared, both axes of an angle 90° - t turn by t/2: each end moves by a chord, and the two add at 90° + t/2."""
    assert shear_mm(grid_of(0.0, rotation(20.0, 2) @ rotation(9.0, 0))) == pytest.approx(0.0, abs=1e-9)
    for tilt in (1.0, 15.0):
        t = np.deg2rad(tilt)
        along_z, along_y = (SHAPE[0] - 1) * SPACING[0] / np.cos(t), (SHAPE[1] - 1) * SPACING[1]
        ends = np.sqrt(along_z**2 + along_y**2 - 2 * along_z * along_y * np.sin(t / 2))
        expected = 2 * np.sin(t / 4) * max(along_z, along_y, ends)
        assert shear_mm(grid_of(tilt, rotation(20.0, 2))) == pytest.approx(expected)


@pytest.mark.parametrize("tilt", [-20.0, 6.0, 15.0])
def test_an_upright_grid_covers_a_sheared_one_along_its_slices(tilt: float) -> None:
    turn = rotation(7.0, 2) @ rotation(4.0, 1)
    sheared = grid_of(tilt, turn)
    made = upright(sheared)
    axes = made.affine[:3, :3] / np.linalg.norm(made.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3)) and np.linalg.det(axes) == pytest.approx(1.0)
    assert np.allclose(made.affine[:3, :2], sheared.affine[:3, :2]), "rows and columns stay"
    assert made.spacing == pytest.approx(SPACING), "slices are 6 mm apart along their normal"
    assert covered(made, sheared).all()
    assert made.shape[0] == sheared.shape[0] and made.shape[2] == sheared.shape[2]
    lean = np.tan(np.deg2rad(abs(tilt))) * SPACING[0] * SHAPE[0] / SPACING[1]
    assert made.shape[1] == int(np.ceil(SHAPE[1] + lean))


def test_a_grid_at_right_angles_is_upright() -> None:
    grid = grid_of(0.0, rotation(7.0, 2))
    assert upright(grid) is grid
    stored = Grid(grid.shape, grid.affine.astype(np.float32).astype(np.float64))
    assert upright(stored) is stored


def test_a_linear_field_is_exact_on_the_upright_grid() -> None:
    slope = np.array([0.3, -0.2, 0.5, 4.0])
    sheared = grid_of(15.0, rotation(7.0, 2))
    made = upright(sheared)
    found = resample((places(sheared) @ slope).astype(np.float32), sheared, made, fill=np.nan, smooth=False)
    middle = np.linalg.norm(places(made)[..., :3], axis=-1) < 60
    assert np.abs(found - places(made) @ slope)[middle].max() < 1e-3


def test_itk_is_given_no_shear() -> None:
    with pytest.raises(GeometryError, match="right angles"):
        to_itk(np.zeros(SHAPE, np.float32), grid_of(15.0))
    slight = grid_of(0.01)
    image = to_itk(np.zeros(SHAPE, np.float32), slight)
    corner = np.array(image.TransformContinuousIndexToPhysicalPoint([n - 1.0 for n in SHAPE[::-1]]))
    assert np.abs(corner * (-1, -1, 1) - places(slight)[-1, -1, -1, :3]).max() < 0.1


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_registration_sees_a_sheared_image_where_it_lies(tilt: float) -> None:
    slope = np.array([0.3, -0.2, 0.5, 100.0])
    grid = grid_of(tilt, rotation(7.0, 2))
    image = to_itk(*_working((places(grid) @ slope).astype(np.float32), grid))
    for point in ((0.0, 0.0, 0.0), (20.0, -30.0, 50.0), (-30.0, 25.0, -60.0)):
        seen = image.EvaluateAtPhysicalPoint((-point[0], -point[1], point[2]))
        assert seen == pytest.approx(slope @ [*point, 1.0], abs=1e-3)


def test_bias_is_that_of_the_voxels() -> None:
    """N4 knows spacings alone: a sheared image is corrected as the same voxels at right angles."""
    mr = heads(grid_of(0.0))[0] * np.linspace(0.6, 1.5, SHAPE[2], dtype=np.float32)
    sheared = grid_of(15.0)
    straight = Grid(SHAPE, np.diag([*sheared.spacing[::-1], 1.0]))
    assert np.array_equal(n4(mr, sheared, iterations=2), n4(mr, straight, iterations=2))


@pytest.mark.parametrize(("upper", "lower"), [(0.0, 15.0), (15.0, 0.0), (15.0, -15.0)])
def test_sheared_files_are_prepared_where_they_lie(upper: float, lower: float, tmp_path: Path) -> None:
    here, there = grid_of(upper), grid_of(lower)
    anatomy = write_nifti(tmp_path / "mr.nii.gz", heads(here)[0], here.affine)
    companion = write_nifti(tmp_path / "ct.nii.gz", heads(there)[1], there.affine)
    case = prepare_pair(anatomy, companion, config=PrepConfig(n4=True))
    told = [finding["problem"] for finding in case.attrs["findings"] if "right angles" in finding["problem"]]
    assert len(told) == (upper != 0) and shear_mm(Grid(case.shape, case.affine)) < 1e-3
    array, affine = to_source_grid(case.companion, case)
    assert np.allclose(affine, here.affine) and array.shape == here.shape[::-1]
    truth = heads(here)[1] > 500
    bone = array.transpose(2, 1, 0) > 1 / 3
    assert 2 * (bone & truth).sum() / (bone.sum() + truth.sum()) > 0.8


@pytest.mark.real
def test_a_sheared_ct_that_lies_right_stays(templates: tuple[RawImage, RawImage]) -> None:
    """The two averaged heads are other people's, which differ by almost 2 mm; the shear is 48 mm from end to end."""
    t1, ct = templates
    sheared = leaning(ct.grid, 15.0, 4.0)
    volume = resample(ct.volume, ct.grid, sheared, fill=-1000.0)
    record, findings = register(t1.volume, t1.grid, volume, sheared, "rigid", "c1")
    assert error_mm(np.array(record["transform"]), np.eye(4)) < 3.0
    assert record["doubtful"] is False and all(finding.severity == "info" for finding in findings)


@pytest.mark.real
def test_two_sheared_files_of_a_real_head_are_registered(
    templates: tuple[RawImage, RawImage], tmp_path: Path
) -> None:
    (t1, ct), true = templates, rotation(7.0, 0)
    true[:3, 3] = (6.0, -5.0, 4.0)
    here, there = leaning(t1.grid, -15.0, 3.0), leaning(ct.grid, 15.0, 4.0)
    mr, hu = resample(t1.volume, t1.grid, here), resample(ct.volume, ct.grid, there, fill=-1000.0)
    case = prepare_pair(
        write_nifti(tmp_path / "mr.nii.gz", mr, here.affine),
        write_nifti(tmp_path / "ct.nii.gz", hu, true @ there.affine),
        config=PrepConfig(register="rigid"),
    )
    assert error_mm(np.eye(4), true) > 8
    assert error_mm(np.array(case.attrs["registration"]["transform"]), true) < 3.0
    grid = Grid(case.shape, case.affine)
    expected = np.clip((resample(ct.volume, ct.grid, grid, fill=-1000.0) + 100) / 1800, 0, 1)
    assert np.corrcoef(case.companion.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.allclose(to_source_grid(case.companion, case)[1], here.affine)

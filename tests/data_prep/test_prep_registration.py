"""Registration finds a known motion, says how sure it is, and its matrix means what it says."""

from __future__ import annotations

import numpy as np
import pytest
from clinfuse_prep import registration
from clinfuse_prep.bias import n4
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.geometry import Grid, resample, with_spacing
from clinfuse_prep.itk import itk_affine, to_itk
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.raw import RawImage, from_source_array
from clinfuse_prep.registration import SEED, _plausible, _shared, motion, nmi, register
from scipy import ndimage

GRID = Grid((24, 32, 28), np.array([[5.0, 0, 0, -67], [0, 5, 0, -77], [0, 0, 5, -57], [0, 0, 0, 1]]))


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A lopsided head: MR and CT (D, H, W) on GRID, with different contrasts."""
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 5.0 for n in GRID.shape], indexing="ij")
    radius = np.sqrt((z / 45) ** 2 + (y / 62) ** 2 + (x / 50) ** 2)
    brain, bone = radius < 0.8, (radius >= 0.8) & (radius < 1)
    spot = np.sqrt((z - 10) ** 2 + (y - 25) ** 2 + (x + 18) ** 2) < 14
    side = np.sqrt((z + 15) ** 2 + (y + 30) ** 2 + (x - 22) ** 2) < 11
    skin = (radius >= 1) & (radius < 1.1)
    mr = 500 * brain + 300 * spot - 350 * side + 700 * skin
    ct = np.where(radius < 1.1, 35.0, -1000.0) + 900 * bone + 60 * spot - 30 * side
    return (ndimage.gaussian_filter(v, 0.6).astype(np.float32) for v in (mr, ct))  # type: ignore[return-value]


def turned(degrees: float, shift: tuple[float, float, float], scale: float = 1.0) -> np.ndarray:
    a, matrix = np.deg2rad(degrees), np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = shift
    return matrix


def error_mm(found: np.ndarray, true: np.ndarray) -> float:
    points = np.array([[x, y, z, 1] for x in (-40, 40) for y in (-50, 50) for z in (-35, 35)], float)
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


@pytest.mark.parametrize("seed", [SEED, 1, 5])
def test_a_known_motion_is_found_wherever_the_samples_fall(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "SEED", seed)
    mr, ct = pair()
    true = turned(7.0, (6.0, -5.0, 4.0))
    record, findings = register(mr, GRID, ct, Grid(GRID.shape, true @ GRID.affine), "rigid", "c1")
    assert error_mm(np.eye(4), true) > 8
    assert error_mm(np.array(record["transform"]), true) < 2.0
    assert record["method"] == "rigid"
    assert record["nmi"] > record["nmi_before"]
    assert not findings and record["doubtful"] is False


def test_the_same_pair_gives_the_same_registration_exactly() -> None:
    mr, ct = pair()
    moved = Grid(GRID.shape, turned(4.0, (3.0, 2.0, -2.0)) @ GRID.affine)
    first, second = (register(mr, GRID, ct, moved, "rigid", "c1")[0] for _ in range(2))
    assert first == second


def test_thick_slices_show_all_of_a_head_that_ends_where_they_do() -> None:
    fine, (mr, ct) = with_spacing(GRID, (1.5, 2.0, 2.5)), pair()
    shared = _shared(resample(mr, GRID, fine), fine, ct, GRID, np.ones(fine.shape, bool), np.eye(4))
    assert shared.coverage == 1.0
    lower = np.eye(4)
    lower[2, 3] = 30.0
    assert _shared(mr, GRID, ct, GRID, np.ones(GRID.shape, bool), lower).coverage == pytest.approx(18 / 24)


def test_no_head_is_a_quarter_larger_than_another() -> None:
    for stretch, plausible in ((1.0, True), (1.2, True), (0.85, True), (1.3, False), (0.7, False)):
        matrix = turned(8.0, (3.0, 0.0, 9.0)) @ np.diag([stretch, 1.0, 1.0, 1.0])
        assert _plausible(matrix) is plausible


def test_a_pair_that_lies_right_stays_where_it_is() -> None:
    mr, ct = pair()
    record, findings = register(mr, GRID, ct, GRID, "rigid", "c1")
    assert record["doubtful"] is False and record["nmi"] >= record["nmi_before"]
    assert error_mm(np.array(record["transform"]), np.eye(4)) < 1.0
    assert all(finding.severity == "info" for finding in findings)
    assert (record["method"] == "header") == bool(findings)


@pytest.mark.parametrize("kind", ["noise", "nearly constant", "elsewhere"])
def test_a_companion_that_shows_something_else_is_doubtful(kind: str) -> None:
    mr, ct = pair()
    rng, grid = np.random.default_rng(0), GRID
    if kind == "noise":
        ct = (100 + rng.normal(0, 0.01, ct.shape)).astype(np.float32)
    elif kind == "nearly constant":
        ct = np.full_like(ct, 5)
        ct[3, 4, 5] = 6
    else:
        ct = ndimage.gaussian_filter(rng.normal(0, 1, ct.shape), 2).astype(np.float32)
    record, findings = register(mr, grid, ct, grid, "rigid", "c1")
    assert record["doubtful"] is True and findings[-1].severity == "warning"
    assert record["nmi"] - record["nmi_chance"] < 0.02


@pytest.mark.real
def test_a_known_stretch_of_real_heads_is_found(templates: tuple[RawImage, RawImage]) -> None:
    t1, ct = templates
    true = turned(5.0, (5.0, -6.0, 4.0)) @ np.diag([1.08, 1.05, 1.1, 1.0])
    record, _ = register(
        t1.volume, t1.grid, ct.volume, Grid(ct.grid.shape, true @ ct.grid.affine), "affine", "c1"
    )
    assert error_mm(np.eye(4), true) > 8
    assert error_mm(np.array(record["transform"]), true) < 3.5


@pytest.mark.real
def test_a_head_that_looks_aside_is_found(templates: tuple[RawImage, RawImage]) -> None:
    """Turned by 20° about its long axis and shifted: from upright starts alone it ends 15 mm off."""
    t1, ct = templates
    a, true = np.deg2rad(20.0), np.eye(4)
    true[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    true[:3, 3] = (15.0, -10.0, 12.0)
    record, _ = register(
        t1.volume, t1.grid, ct.volume, Grid(ct.grid.shape, true @ ct.grid.affine), "rigid", "c1"
    )
    assert error_mm(np.array(record["transform"]), true) < 3.0 and error_mm(np.eye(4), true) > 20.0


@pytest.mark.real
def test_images_that_share_nothing_are_doubtful(templates: tuple[RawImage, RawImage]) -> None:
    t1, _ = templates
    noise = np.random.default_rng(0).normal(0, 1, t1.volume.shape).astype(np.float32)
    record, findings = register(t1.volume, t1.grid, noise, t1.grid, "rigid", "c1")
    assert record["doubtful"] is True
    assert findings[-1].case == "c1" and "doubtful" in findings[-1].problem


def test_shared_information_by_closed_form() -> None:
    values = np.repeat(np.arange(8, dtype=np.float32), 100)
    assert nmi(values, values * 3 + 1) == pytest.approx(2.0, abs=0.02)
    assert nmi(np.tile(values, 8), np.repeat(values, 8)) == pytest.approx(1.0, abs=0.03)


def test_motion_is_measured_at_the_middle_of_the_grid() -> None:
    centred = Grid((21, 21, 21), np.eye(4) - np.eye(4, k=3) * 10)
    shift, turn = motion(turned(10.0, (0.0, 0.0, 3.0)), centred)
    assert turn == pytest.approx(10.0)
    assert shift > 0
    assert motion(np.eye(4), GRID) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_itk_and_our_grid_agree_on_places() -> None:
    a = np.deg2rad(9)
    affine = GRID.affine.copy()
    affine[:3, :3] = (
        np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ affine[:3, :3]
    )
    image = to_itk(np.zeros(GRID.shape, np.float32), Grid(GRID.shape, affine))
    assert np.allclose(itk_affine(image), affine)
    x, y, z = image.TransformContinuousIndexToPhysicalPoint((3.0, 4.0, 5.0))
    assert np.allclose((affine @ [3, 4, 5, 1])[:3], (-x, -y, z))


def test_bias_correction_evens_out_a_known_field() -> None:
    mr, _ = pair()
    field = np.linspace(0.6, 1.5, GRID.shape[2], dtype=np.float32)[None, None]
    even = n4(mr * field, GRID)
    core = np.zeros(GRID.shape, dtype=bool)
    core[8:16, 8:14, 6:22] = (mr[8:16, 8:14, 6:22] > 450) & (mr[8:16, 8:14, 6:22] < 550)
    spread = [float(v[core].std() / v[core].mean()) for v in (mr * field, even)]
    assert spread[1] < 0.5 * spread[0]


def test_masks_drawn_on_the_ct_move_with_it() -> None:
    """Bone and lesion lie on the CT's grid, the brain on the MRI's; the CT is off by a known motion."""
    mr, ct = pair()
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 5.0 for n in GRID.shape], indexing="ij")
    radius = np.sqrt((z / 45) ** 2 + (y / 62) ** 2 + (x / 50) ** 2)
    masks = {"brain": radius < 0.8, "bone": (radius >= 0.8) & (radius < 1)}
    masks["lesion"] = np.sqrt((z - 10) ** 2 + (y - 25) ** 2 + (x + 18) ** 2) < 14
    off = turned(7.0, (16.0, -12.0, 9.0)) @ GRID.affine

    def raw(volume: np.ndarray, affine: np.ndarray) -> RawImage:
        return from_source_array(volume.transpose(2, 1, 0).astype(np.float32), affine, kind="nifti")

    case = prepare_pair(
        raw(mr, GRID.affine),
        raw(ct, off),
        brain=raw(masks["brain"], GRID.affine),
        bone=raw(masks["bone"], off),
        lesion=raw(masks["lesion"], off),
        config=PrepConfig(register="rigid"),
    )
    for roi in ("bone", "lesion"):
        found, true = case.masks[roi] > 0, masks[roi] & ~(masks["brain"] if roi == "bone" else masks["bone"])
        assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8, roi

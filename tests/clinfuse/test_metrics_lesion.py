"""Lesion metrics against closed forms, MONAI (subvoxels) and surface-distance, and on empty masks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from clinfuse.errors import ConfigError, GeometryError, InputError
from clinfuse.metrics import (
    dice,
    hd95,
    lesion_scores,
    nsd,
    surface_distances,
)
from clinfuse.metrics.lesion import BOTH_EMPTY, FALSE_ALARM, MISSED, NORMAL, grid_diagonal_mm
from clinfuse.metrics.nearest import nearest_mm

SPACING = (3.0, 1.0, 1.5)


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


def blob(seed: int, shape: tuple[int, ...] = (20, 30, 26)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return noise > np.quantile(noise, 0.8)


def sphere(radius_mm: float, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= radius_mm**2


def cube_area(n: int) -> float:
    """Faces, cut edges and cut corners of a cube of n unit voxels."""
    return 6 * (n - 1) ** 2 + 12 * (n - 1) * np.sqrt(0.5) + 8 * np.sqrt(3) / 8


def test_boxes_shifted_along_each_axis() -> None:
    """A box moved by one voxel: its end faces are one spacing away, and the larger Dice is exact."""
    a = box((16, 16, 16), (4, 10), (4, 10), (4, 10))
    for axis, step in enumerate(SPACING):
        b = np.roll(a, 1, axis)
        scores = lesion_scores(a, b, SPACING, tolerance_mm=step)
        assert scores.situation == NORMAL
        assert scores.dice == pytest.approx(2 * 5 * 36 / (2 * 216))
        assert scores.nsd == 1.0
        assert scores.surfaces is not None
        assert scores.surfaces.hausdorff(100) == pytest.approx(step)


def test_surface_area_of_a_box() -> None:
    """Faces by their mm²; edges and corners are cut at the midpoints, so the closed form subtracts them."""
    n = 8
    mask = box((12, 12, 12), (2, 2 + n), (2, 2 + n), (2, 2 + n))
    d = surface_distances(mask, mask, SPACING)
    z, y, x = SPACING
    faces = 2 * (n - 1) ** 2 * (y * x + z * x + z * y)
    edges = 4 * (n - 1) * sum(a * np.hypot(b / 2, c / 2) for a, b, c in ((z, y, x), (y, z, x), (x, z, y)))
    corners = 8 * np.linalg.norm([y * x / 8, z * x / 8, z * y / 8])
    assert d.reference_area.sum() == pytest.approx(faces + edges + corners)
    assert d.reference_mm.max() == 0.0 and d.overlap(0.1) == 1.0 and d.mean() == 0.0


def test_concentric_spheres() -> None:
    """Radii 14 and 9 mm are 5 mm apart everywhere, to within the grid's half diagonal."""
    spacing, shape = (1.5, 1.0, 1.25), (26, 36, 30)
    big, small = sphere(14, spacing, shape), sphere(9, spacing, shape)
    scores = lesion_scores(big, small, spacing, tolerance_mm=3.0)
    assert scores.hd95_mm == pytest.approx(5.0, abs=0.75)
    assert scores.nsd == 0.0
    assert nsd(big, small, spacing, 7.0) == 1.0
    assert scores.surfaces is not None
    assert scores.surfaces.reference_area.sum() == pytest.approx(4 * np.pi * 14**2, rel=0.1)


def test_shell_has_two_surfaces() -> None:
    """The inner wall of a shell is as far from the solid's surface as the shell is thick."""
    solid = box((18, 18, 18), (2, 16), (2, 16), (2, 16))
    shell = solid - box((18, 18, 18), (6, 12), (6, 12), (6, 12))
    d = surface_distances(shell, solid, (1.0, 1.0, 1.0))
    assert d.hausdorff(100) == pytest.approx(4.0)
    assert d.predicted_mm.max() == 0.0
    inner = d.reference_area[d.reference_mm > 0].sum()
    expected = cube_area(6) / (cube_area(6) + cube_area(14))
    assert inner / d.reference_area.sum() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(20, 30, 26), (30, 26)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_surface_distance_package(seed: int, shape: tuple[int, ...]) -> None:
    reference = pytest.importorskip("surface_distance", reason="surface-distance is not installed")
    spacing = SPACING[-len(shape) :]
    a, b = blob(seed, shape), blob(seed, shape) ^ (blob(seed + 10, shape) & blob(seed + 20, shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = reference.compute_surface_distances(a, b, spacing)
    ours = lesion_scores(a, b, spacing, tolerance_mm=2.0)
    assert ours.dice == pytest.approx(reference.compute_dice_coefficient(a, b), abs=1e-12)
    assert ours.nsd == pytest.approx(reference.compute_surface_dice_at_tolerance(theirs, 2.0), abs=1e-5)
    assert ours.hd95_mm == pytest.approx(reference.compute_robust_hausdorff(theirs, 95), abs=1e-5)
    assert ours.surfaces is not None
    mean = reference.compute_average_surface_distance(theirs)
    areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assert ours.surfaces.mean() == pytest.approx(np.average(mean, weights=areas), abs=1e-5)


@pytest.mark.parametrize("seed", [3, 4])
def test_against_monai_with_subvoxels(seed: int) -> None:
    from monai.metrics.surface_dice import compute_surface_dice

    a, b = blob(seed), np.roll(blob(seed), (1, 2, -1), (0, 1, 2))
    a_BCDHW, b_BCDHW = (torch.from_numpy(m)[None, None].float() for m in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = compute_surface_dice(
            b_BCDHW, a_BCDHW, [2.0], include_background=True, spacing=SPACING, use_subvoxels=True
        )
    assert nsd(a, b, SPACING, 2.0) == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5])
@pytest.mark.parametrize("shape", [(9, 20, 31), (24, 7, 16), (40, 33), (1, 12, 140)])
def test_nearest_is_the_distance_transform(shape: tuple[int, ...], share: float) -> None:
    """Few and many targets, thin and long grids, rows longer than an 8-bit distance holds."""
    rng = np.random.default_rng(0)
    on = rng.random(shape) < share
    on.reshape(-1)[rng.integers(on.size)] = True
    spacing = SPACING[-len(shape) :]
    points = rng.choice(on.size, 200)
    expected = distance_transform_edt(~on, sampling=spacing).reshape(-1)[points]
    assert np.allclose(nearest_mm(points, np.flatnonzero(on), shape, spacing), expected, rtol=1e-6)


def test_nearest_beyond_its_reach() -> None:
    """A far outlier that the sample for the reach misses is found all the same."""
    shape, spacing = (50, 30, 30), (1.0, 1.0, 1.0)
    on = np.zeros(shape, bool)
    on[0] = True
    points = np.append(np.arange(900, 2700), on.size - 1)
    found = nearest_mm(points, np.flatnonzero(on), shape, spacing)
    assert found[-1] == pytest.approx(49) and found[0] == 1 and found[-2] == 2


def test_symmetry_and_monotony() -> None:
    a, b = blob(1), blob(2)
    forward, backward = lesion_scores(a, b, SPACING), lesion_scores(b, a, SPACING)
    assert (forward.dice, forward.nsd, forward.hd95_mm) == pytest.approx(
        (backward.dice, backward.nsd, backward.hd95_mm)
    )
    values = [nsd(a, b, SPACING, t) for t in (0.5, 1.0, 2.0, 4.0, 30.0)]
    assert values == sorted(values) and values[-1] == 1.0


def test_empty_masks_have_declared_values() -> None:
    shape = (6, 8, 10)
    none, some = np.zeros(shape, np.uint8), box(shape, (1, 3), (1, 3), (1, 3))
    far = grid_diagonal_mm(shape, SPACING)
    table = {
        BOTH_EMPTY: (none, none, 1.0, 1.0, 0.0, "empty", 0.0),
        MISSED: (some, none, 0.0, 0.0, far, "ok", 0.0),
        FALSE_ALARM: (none, some, 0.0, 0.0, far, "empty", 8 * 4.5 / 1000),
    }
    for situation, (ref, pred, d, n, h, status, volume) in table.items():
        scores = lesion_scores(ref, pred, SPACING)
        assert (scores.situation, scores.status) == (situation, status)
        assert (scores.dice, scores.nsd, scores.hd95_mm) == (d, n, h)
        assert scores.false_volume_ml == pytest.approx(volume)
        assert dice(ref, pred) == d and hd95(ref, pred, SPACING) == h


def test_single_slice_is_measured_as_contour() -> None:
    a, b = blob(1, (30, 26)), blob(2, (30, 26))
    stack = lesion_scores(a[None], b[None], SPACING)
    flat = lesion_scores(a, b, SPACING[1:])
    assert (stack.nsd, stack.hd95_mm) == pytest.approx((flat.nsd, flat.hd95_mm))


def test_one_voxel_and_border_voxels() -> None:
    one = box((1 + 4, 5, 5), (2, 3), (2, 3), (2, 3))
    assert lesion_scores(one, one, SPACING).nsd == 1.0
    corner = box((5, 5, 5), (0, 1), (0, 1), (0, 1))
    full = np.ones((5, 5, 5), np.uint8)
    assert lesion_scores(full, full, SPACING).dice == 1.0
    assert lesion_scores(corner, one, (1.0, 1.0, 1.0)).hd95_mm == pytest.approx(np.sqrt(12))


def test_bad_input_shows_both_sides() -> None:
    mask = box((4, 5, 6), (1, 3), (1, 3), (1, 3))
    with pytest.raises(GeometryError, match=r"\(4, 5, 6\).*\(4, 5, 5\)"):
        lesion_scores(mask, mask[:, :, :5], SPACING)
    with pytest.raises(GeometryError, match=r"3 positive values.*2 values"):
        lesion_scores(mask, mask, (1.0, 1.0))
    with pytest.raises(GeometryError, match="positive"):
        lesion_scores(mask, mask, (0.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"values 0 and 1.*0\.5"):
        lesion_scores(mask * 0.5, mask, SPACING)
    with pytest.raises(InputError, match="values 0, 1, 2"):
        lesion_scores(np.arange(120).reshape(4, 5, 6).astype(np.uint8) % 3, mask, SPACING)
    with pytest.raises(ConfigError, match="tolerance_mm > 0"):
        lesion_scores(mask, mask, SPACING, tolerance_mm=0.0)
    with pytest.raises(InputError, match="no surface"):
        surface_distances(mask, mask * 0, SPACING)

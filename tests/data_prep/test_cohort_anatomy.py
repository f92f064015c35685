"""The simulated patients: HU of each tissue, exact lesion masks, determinism, differences between patients."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from clinfuse_prep.cohort.deform import draw_subject, template_coordinates
from clinfuse_prep.cohort.fields import Grid, covering, lattice_over, smooth_noise, soft, upsample
from clinfuse_prep.cohort.head import base_grid, base_head
from clinfuse_prep.cohort.patient import (
    KINDS,
    Patient,
    lesion_kind,
    mr_contrast,
    patient_grid,
    simulate_patient,
)
from clinfuse_prep.cohort.primitives import capsule, ellipsoid, smooth_intersection, smooth_union
from scipy import ndimage

from clinfuse.errors import ConfigError

COARSE = (3.0, 3.0, 3.0)


@lru_cache(maxsize=16)
def patient(index: int, kind: str | None = None, contrast: str | None = None, seed: int = 0) -> Patient:
    """A patient at 3 mm, simulated once per test run."""
    return simulate_patient(seed, index, COARSE, kind=kind, contrast=contrast)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2|A∩B| / (|A| + |B|)."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_solids_agree_with_closed_forms() -> None:
    x, y, z = (np.array([v], np.float32) for v in (3.0, 4.0, 0.0))
    assert ellipsoid((x, y, z), (0, 0, 0), (2, 2, 2))[0] == pytest.approx(3.0, abs=1e-4)
    assert capsule((x, y, z), (3, -5, 0), (3, 1, 0), 1.0)[0] == pytest.approx(2.0, abs=1e-5)
    assert capsule((x, y, z), (0, 4, 0), (6, 4, 0), 1.0, 3.0)[0] == pytest.approx(-2.0, abs=1e-5)
    a, b = np.float32([1.0, 5.0]), np.float32([1.0, 1.0])
    np.testing.assert_allclose(smooth_union(a, b, 2.0), [0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(smooth_intersection(a, b, 2.0), [1.5, 5.0], atol=1e-6)


def test_upsampling_is_exact_for_cubics_and_noise_does_not_depend_on_the_spacing() -> None:
    lattice = Grid(shape=(5, 6, 7), spacing=(10.0, 10.0, 10.0), origin=(-20.0, -25.0, -30.0))
    grid = covering((-19.0, -24.0, -29.0), (19.0, 24.0, 29.0), (2.0, 3.0, 1.5))
    z, y, x = lattice.mesh() / 10
    fine_z, fine_y, fine_x = grid.mesh() / 10
    value = upsample(z**3 - y * x + x**2, lattice, grid)
    np.testing.assert_allclose(value, fine_z**3 - fine_y * fine_x + fine_x**2, atol=2e-4)
    coarse = covering((-48.0, -48.0, -48.0), (48.0, 48.0, 48.0), (4.0, 4.0, 4.0))
    dense = covering((-48.0, -48.0, -48.0), (48.0, 48.0, 48.0), (4 / 3, 4 / 3, 4 / 3))
    fields = [smooth_noise(g, np.random.default_rng(3), (20.0, 10.0)) for g in (coarse, dense)]
    np.testing.assert_allclose(fields[1][1::3, 1::3, 1::3], fields[0], atol=2e-4)
    assert 0.6 < fields[0].std() < 1.4
    assert lattice_over(coarse, 20.0) == lattice_over(dense, 20.0)


def test_a_soft_surface_keeps_the_volume() -> None:
    radius = np.linalg.norm(covering((-20.0,) * 3, (20.0,) * 3, (2.5,) * 3).mesh(), axis=0)
    volume = soft(radius - 14.0, 2.5).sum() * 2.5**3
    assert volume == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.02)


def test_the_base_head_is_nested_and_symmetric() -> None:
    head, grid = base_head(), base_grid()
    z = grid.axes[0]
    above = z > -20
    vault = head["cavity"] + 0 * z[:, None, None]
    assert (head["skin"][above][vault[above] < head["thickness"][above]] < 0).mean() > 0.999
    assert (head["cavity"][head["brain"] < -1] < 0).mean() > 0.999
    for values in head.values():
        assert np.isfinite(values).all() and not values.flags.writeable
        np.testing.assert_array_equal(values, values[..., ::-1])
    cavity_ml = (head["cavity"][z > -70] < 0).sum() * np.prod(grid.spacing) / 1000
    assert 1700 < cavity_ml < 2600


@pytest.mark.parametrize("seed", [0, 5])
def test_deformations_never_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = patient_grid((6.0, 6.0, 6.0))
    at = template_coordinates(grid, draw_subject(rng), rng)
    jacobian = np.stack([np.stack(np.gradient(part, 6.0), -1) for part in at], -2)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > 0.4 and determinant.max() < 3


def test_tissues_have_their_hounsfield_units() -> None:
    p = patient(7)
    hu = p.ct_aligned.astype(float)
    brain = ndimage.binary_erosion(p.brain, iterations=3)
    assert 25 < np.median(hu[brain]) < 45
    assert (hu[brain] < 16).any(), "ventricles hold fluid"
    assert hu[p.bone > 0].mean() > 700
    assert np.percentile(hu[p.bone > 0], 2) > 250 and np.percentile(hu[p.bone > 0], 99.5) < 1900
    assert hu[:3].max() > 300, "the skull base and spine reach the lower border"
    corner = hu[-4:, :4, :4]
    assert abs(corner.mean() + 1000) < 5 and 0.5 < corner.std() < 5
    fat = (hu > -115) & (hu < -60)
    assert fat.sum() * 0.027 > 30, "millilitres of subcutaneous and orbital fat"
    assert p.mr[p.bone > 0].mean() < 0.6 * p.mr[brain].mean()
    assert p.mr[-4:, :4, :4].mean() < 0.06 * p.mr[brain].mean()


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_masks_are_binary_disjoint_and_of_plausible_size(kind: str) -> None:
    p = patient(2, kind)
    voxel_ml = float(np.prod(p.grid.spacing)) / 1000
    for mask in (p.brain, p.bone, p.lesion):
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert 1000 < p.brain.sum() * voxel_ml < 2000
    assert 280 < p.bone.sum() * voxel_ml < 900
    assert not (p.brain & p.bone).any()
    assert (p.lesion.sum() > 0) == (kind != "none")
    if kind != "none":
        assert 2 < p.lesion.sum() * voxel_ml < 160
        assert p.truth["lesion"]["voxels"] == p.lesion.sum()
        assert not (p.lesion[p.affected == 0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_changes_nothing_outside_what_it_affects(kind: str) -> None:
    ill, well = patient(2, kind, "T2"), patient(2, "none", "T2")
    outside = ill.affected == 0
    np.testing.assert_array_equal(ill.mr[outside], well.mr[outside])
    np.testing.assert_array_equal(ill.ct_aligned[outside], well.ct_aligned[outside])
    mask = ill.lesion > 0
    changed = (np.abs(ill.ct_aligned - well.ct_aligned) > 3) | (np.abs(ill.mr - well.mr) > 30)
    assert changed[mask].mean() > 0.95


def test_blood_is_bright_on_ct_exactly_in_its_mask() -> None:
    for seed in (0, 3):
        ill, well = patient(2, "haemorrhage", "T1", seed), patient(2, "none", "T1", seed)
        mask = ill.lesion > 0
        core = ndimage.binary_erosion(mask)
        assert 55 < ill.ct_aligned[core].mean() < 80
        assert dice(ill.ct_aligned - well.ct_aligned > 12, mask) > 0.9
    assert {patient(2, "haemorrhage", "T1", s).truth["lesion"]["form"] for s in (0, 3)} == {
        "subdural",
        "intracerebral",
    }


def test_stroke_is_dark_on_ct_and_t1_and_bright_on_t2_exactly_in_its_mask() -> None:
    t1, t2 = patient(2, "stroke", "T1"), patient(2, "stroke", "T2")
    mask = t1.lesion > 0
    np.testing.assert_array_equal(t1.lesion, t2.lesion)
    change = t1.ct_aligned - patient(2, "none", "T1").ct_aligned
    assert dice(change < -4, mask) > 0.85
    assert (t1.mr - patient(2, "none", "T1").mr)[mask].mean() < -50
    assert (t2.mr - patient(2, "none", "T2").mr)[mask].mean() > 100


def test_tumour_has_an_enhancing_rim_around_its_core() -> None:
    p = patient(2, "tumour", "T1c")
    depth = ndimage.distance_transform_edt(p.lesion, sampling=COARSE)
    rim, core = (p.lesion > 0) & (depth < 3.5), depth > 7
    assert p.mr[rim].mean() > 1.5 * p.mr[core].mean()
    assert p.ct_aligned[rim].mean() > p.ct_aligned[core].mean() + 5


def test_bone_tumour_replaces_bone() -> None:
    for seed in range(3):
        ill, well = patient(1, "bone_tumour", None, seed), patient(1, "none", "T1c", seed)
        mask = ill.lesion > 0
        assert (well.bone[mask] > 0).mean() > 0.25
        kind = ill.truth["lesion"]["type"]
        change = float(ill.bone[mask].sum()) - float(well.bone[mask].sum())
        assert (change < 0) if kind == "lytic" else (kind in {"mixed", "sclerotic"})
        assert not (ill.brain & ill.lesion).any()


def test_same_seed_and_index_give_the_same_bytes_and_others_differ() -> None:
    first, again = patient(3), simulate_patient(0, 3, COARSE)
    for name in ("mr", "ct", "ct_aligned", "brain", "bone", "lesion"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.truth == again.truth
    for other in (simulate_patient(1, 3, COARSE), patient(2, "stroke")):
        assert dice(other.brain > 0, first.brain > 0) < 0.985
        assert dice(other.bone > 0, first.bone > 0) < 0.9


def test_the_same_patient_at_another_spacing_is_the_same_anatomy() -> None:
    coarse, fine = simulate_patient(0, 3, (6.0, 6.0, 6.0)), patient(3)
    for name, least in (("brain", 0.96), ("bone", 0.65), ("lesion", 0.8)):
        pooled = getattr(fine, name).reshape(32, 2, 40, 2, 32, 2).mean(axis=(1, 3, 5)) >= 0.5
        assert dice(pooled, getattr(coarse, name) > 0) > least


def test_kinds_cycle_and_every_eighth_is_free_of_lesion() -> None:
    kinds = [lesion_kind(i) for i in range(16)]
    assert [i for i, kind in enumerate(kinds) if kind == "none"] == [7, 15]
    assert set(kinds) == {*KINDS, "none"}
    assert {mr_contrast(i, lesion_kind(i)) for i in range(8)} == {"T1", "T1c", "T2"}


def test_unknown_kind_and_contrast_are_refused() -> None:
    with pytest.raises(ConfigError, match="kind of lesion"):
        simulate_patient(0, 0, (6.0, 6.0, 6.0), kind="cyst")
    with pytest.raises(ConfigError, match="contrast"):
        simulate_patient(0, 0, (6.0, 6.0, 6.0), contrast="FLAIR")

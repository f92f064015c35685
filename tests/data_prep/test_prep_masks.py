"""Morphology in millimetres by closed forms, masks of made heads, and the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.deface import face_mask
from clinfuse_prep.geometry import Grid
from clinfuse_prep.intensity import hu_scaling, percentile_scaling, to_raw, to_unit
from clinfuse_prep.masks.auto import dice
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.brain import brain_from_ct
from clinfuse_prep.masks.brain_mr import brain_classical
from clinfuse_prep.masks.enclosed import enclosure
from clinfuse_prep.masks.given import inside
from clinfuse_prep.masks.head import head_ct, without_holder
from clinfuse_prep.masks.morphology import closed, dilate, drop_small, erode, fill_planes, largest, opened
from clinfuse_prep.masks.roi import RoiMasks, _apart
from clinfuse_prep.masks.totalsegmentator import label_mask, missing_weights
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.raw import from_source_array
from make_sources import SPACING, head
from scipy import ndimage

from clinfuse.colour import is_colour, join_colour, split_colour


def box(shape: tuple[int, int, int], *ranges: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[ranges] = True
    return mask


def test_dilation_and_erosion_count_millimetres() -> None:
    spacing = (2.0, 1.0, 0.5)
    point = box((9, 15, 31), slice(4, 5), slice(7, 8), slice(15, 16))
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(point.shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    ball = z**2 + y**2 + x**2 <= 3.0**2
    assert np.array_equal(dilate(point, 3.0, spacing), ball)
    block = box((8, 20, 20), slice(0, 8), slice(4, 16), slice(4, 16))
    assert np.array_equal(
        erode(block, 1.0, (1.0, 1.0, 1.0)), box(block.shape, slice(0, 8), slice(5, 15), slice(5, 15))
    )


def test_slices_far_apart_are_treated_one_by_one() -> None:
    mask = box((3, 9, 9), slice(1, 2), slice(3, 6), slice(3, 6))
    grown = dilate(mask, 2.0, (5.0, 1.0, 1.0))
    assert not grown[0].any() and not grown[2].any()
    assert grown[1].sum() > mask.sum()


def test_opening_removes_thin_and_closing_fills_narrow_parts() -> None:
    spacing = (1.0, 1.0, 1.0)
    block = box((9, 30, 30), slice(1, 8), slice(5, 15), slice(5, 15))
    thin = block | box(block.shape, slice(4, 5), slice(20, 21), slice(2, 28))
    assert not (opened(thin, 2.0, spacing) & ~block).any()
    assert np.array_equal(largest(thin), block)
    gap = block & ~box(block.shape, slice(0, 9), slice(9, 10), slice(5, 15))
    assert closed(gap, 1.5, spacing)[4, 9, 8]
    assert drop_small(thin, 0.1, spacing).sum() == block.sum()
    ring = block & ~box(block.shape, slice(0, 9), slice(8, 12), slice(8, 12))
    assert np.array_equal(fill_planes(ring), block)
    assert not fill_planes(np.zeros((2, 5, 5), dtype=bool)).any()


def test_enclosure_is_one_inside_a_ring_and_a_half_beside_a_wall() -> None:
    y, x = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    radius = np.hypot(y, x)
    ring = ((radius > 25) & (radius < 31))[None]
    inside = enclosure(ring, (5.0, 1.0, 1.0))[0]
    assert inside[40, 40] == pytest.approx(1.0, abs=0.02)
    wall = np.zeros((1, 80, 80), dtype=bool)
    wall[0, 38:42, :] = True
    assert enclosure(wall, (5.0, 1.0, 1.0))[0, 60, 40] == pytest.approx(0.4, abs=0.15)


def test_bone_and_brain_of_a_made_head() -> None:
    mr, ct, brain = head()
    bone, _ = bone_from_ct(ct, SPACING, grey8=False)
    assert dice(bone, ct > 600) > 0.97
    assert dice(brain_from_ct(ct, bone, SPACING, grey8=False), brain > 0) > 0.85
    assert dice(brain_classical(mr, SPACING), brain > 0) > 0.8


def test_a_table_is_not_part_of_the_head() -> None:
    _, ct, _ = head()
    wide = np.full((12, 48, 40), -1000, np.float32)
    wide[:, 12:44, 6:34] = ct
    clean = wide.copy()
    wide[:, 2:4, :] = 500
    assert not head_ct(wide, SPACING, grey8=False)[:, :6].any()
    assert np.array_equal(
        without_holder(wide, SPACING, grey8=False), without_holder(clean, SPACING, grey8=False)
    )


def test_the_face_mask_never_touches_the_brain() -> None:
    shape = (40, 60, 40)
    z, y, x = np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij")
    brain = ((z / 12) ** 2 + (y / 20) ** 2 + (x / 15) ** 2 < 1).astype(np.uint8)
    face = face_mask(brain, Grid(shape, np.diag([3.0, 3.0, 3.0, 1.0])))
    assert face.any()
    assert not (face & (brain > 0)).any()
    assert face[5, 55, 20] and not face[35, 55, 20] and not face[5, 5, 20]


def test_scaling_there_and_back() -> None:
    hu = np.array([-1000, -100, 35, 1700, 2500], np.float32)
    scaling = hu_scaling((-100, 1700))
    unit = to_unit(hu, scaling)
    assert unit == pytest.approx([0, 0, 135 / 1800, 1, 1])
    assert to_raw(unit, scaling) == pytest.approx([-100, -100, 35, 1700, 1700], abs=1e-3)
    ramp = np.linspace(0, 1000, 1001, dtype=np.float32)[None, None]
    found = percentile_scaling(ramp, np.ones(ramp.shape, dtype=bool), (10, 90))
    assert (found["low"], found["high"]) == pytest.approx((100, 900))


def test_colour_survives_luminance_and_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    assert is_colour(rgb) and not is_colour(np.repeat(rgb[..., :1], 3, -1))
    y, chroma = split_colour(rgb)
    assert np.abs(join_colour(y / 255, chroma).astype(int) - rgb.astype(int)).max() <= 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 1.1), (0.5, 2.0, 1.0), (6.0, 1.0, 1.0)])
def test_slabs_give_the_same_as_one_distance_map_of_the_whole(spacing: tuple[float, float, float]) -> None:
    mask = np.random.default_rng(3).random((80, 18, 17)) > 0.995
    mask[:9], mask[70:] = False, True
    wide = (1e6 if spacing[0] > 3.0 else spacing[0], *spacing[1:])
    near = ndimage.distance_transform_edt(~mask, sampling=wide) <= 3.0
    assert np.array_equal(dilate(mask, 3.0, spacing), near)
    deep = ndimage.distance_transform_edt(near, sampling=wide) > 3.0
    assert np.array_equal(erode(near, 3.0, spacing), deep)


def test_no_voxel_is_brain_and_bone() -> None:
    brain, bone = (np.zeros((4, 8, 8), np.uint8) for _ in range(2))
    brain[:, 2:6], bone[:, 5:8] = 1, 1
    names = ("auto:x", "curated")
    for first, second in ((a, b) for a in names for b in names):
        made = RoiMasks(
            arrays={"brain": brain.copy(), "bone": bone.copy()}, provenance={"brain": first, "bone": second}
        )
        _apart(made, "c1")
        both = made.arrays["brain"] & made.arrays["bone"]
        kept = {
            roi: np.array_equal(made.arrays[roi], mask) for roi, mask in (("brain", brain), ("bone", bone))
        }
        if (first, second) == ("curated", "curated"):
            assert all(kept.values()) and "33%" in made.findings[0].found
        else:
            assert not both.any() and not made.findings
            assert kept == {"brain": first == "curated", "bone": first != "curated"}


def test_totalsegmentator_labels_and_weights(tmp_path: Path) -> None:
    import nibabel as nib

    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1:3, 1, 2], labels[4, 0, 0] = 90, 91
    mask = label_mask(nib.Nifti1Image(labels, np.eye(4)), {90: "brain", 91: "skull"}, "brain")
    assert mask.shape == (3, 4, 5) and mask.sum() == 2 and mask[2, 1, 1] and mask[2, 1, 2]
    assert missing_weights(tmp_path / "none", "CT") == [291, 292, 293, 294, 295, 298]
    for number in (850, 852):
        (tmp_path / f"Dataset{number}_TotalSegMRI_part").mkdir()
    assert missing_weights(tmp_path, "MR") == [851]


def templates(root: Path) -> Path:
    folder = root / "templates_2mm"
    if not folder.is_dir():
        pytest.skip("the 2 mm templates are not here")
    return folder


@pytest.mark.real
def test_brain_of_the_ct_template_matches_its_mask(data_root: Path) -> None:
    from clinfuse_prep.nifti import read_nifti

    folder = templates(data_root)
    case = prepare_pair(folder / "t1.nii.gz", folder / "ct_hu.nii.gz")
    truth = read_nifti(folder / "brainmask.nii.gz", role="brain").volume > 0.5
    assert dice(case.brain > 0, truth) > 0.92
    assert 200 < case.bone.sum() * 8 / 1000 < 700


@pytest.mark.real
def test_templates_of_other_orientation_are_laid_on_the_t1_by_their_affines(data_root: Path) -> None:
    from clinfuse_prep.geometry import to_source_grid
    from clinfuse_prep.nifti import read_nifti

    folder = templates(data_root)
    case = prepare_pair(folder / "t1.nii.gz", folder / "spect.nii.gz", brain=folder / "brainmask.nii.gz")
    assert case.modalities == ("MR", "NM")
    inside = case.companion[case.brain > 0].mean()
    assert inside > 3 * case.companion[case.brain == 0].mean()
    array, affine = to_source_grid(case.anatomy, case)
    import nibabel as nib

    original = nib.load(folder / "t1.nii.gz")
    assert np.allclose(affine, original.affine)
    raw = original.get_fdata()
    assert np.corrcoef(array.ravel(), raw.ravel())[0, 1] > 0.99
    assert read_nifti(folder / "t1.nii.gz", role="x").volume.shape == case.shape


@pytest.mark.real
def test_real_picture_pairs_have_plausible_brains(data_root: Path) -> None:
    folder = data_root / "aanlib" / "MRI-CT" / "case_20"
    if not folder.is_dir():
        pytest.skip("the real picture pairs are not here")
    case = prepare_pair(folder / "MRI", folder / "CT")
    ml = case.brain.sum() * 5 / 1000
    assert 1000 < ml < 1700
    assert case.companion[case.bone > 0].mean() > 0.9
    middle = case.brain[10]
    assert np.ptp(np.nonzero(middle)[0]) > 120, "a brain is longer than wide"
    one = prepare_pair(folder / "MRI" / "20015.png", folder / "CT" / "20015.png")
    assert one.shape == (1, 256, 256)
    assert dice(one.brain > 0, case.brain[10:11] > 0) > 0.9


def test_masks_from_files_may_be_labels_probabilities_or_pictures() -> None:
    ball = head()[2] > 0
    soft = ndimage.gaussian_filter(ball.astype(np.float32), 0.5)
    half = soft > 0.5 * soft.max()
    for values, picture, expected in (
        (ball * 1, False, ball),
        (ball * 255, False, ball),
        (ball * np.random.default_rng(0).integers(1, 5, ball.shape), False, ball),
        (soft, False, half),
        (np.round(soft * 255), True, half),
    ):
        image = from_source_array(values.astype(np.float32), np.eye(4), kind="array", grey8=picture)
        assert np.array_equal(inside(image, "brain", "c").transpose(2, 1, 0), expected)

"""ROI-SSIM and PSNR against scikit-image, the seam index and the outside measure against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from clinfuse.case import Case
from clinfuse.errors import GeometryError, InputError
from clinfuse.metrics import outside_sources, roi_psnr, roi_ssim, seam_index
from clinfuse.metrics.roi import PSNR_CAP_DB, psnr_to_sources, ssim_map
from clinfuse.metrics.seam import border_band


def noisy(case: Case, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(case.anatomy + rng.normal(0, 0.1, case.shape), 0, 1).astype(np.float32)


def test_ssim_is_scikit_images_averaged_over_the_mask(tiny_case: Case) -> None:
    fused = noisy(tiny_case)
    maps = [
        structural_similarity(
            f, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
        )[1]
        for f, a in zip(fused, tiny_case.anatomy, strict=True)
    ]
    expected = np.stack(maps)
    assert np.abs(ssim_map(fused, tiny_case.anatomy) - expected).max() < 1e-4
    inside = expected[tiny_case.brain > 0].mean()
    assert roi_ssim(fused, tiny_case.anatomy, tiny_case.brain) == pytest.approx(inside, abs=1e-5)
    assert roi_ssim(fused, tiny_case.anatomy) == pytest.approx(expected.mean(), abs=1e-5)
    one = roi_ssim(fused[5], tiny_case.anatomy[5], tiny_case.brain[5])
    assert one == pytest.approx(expected[5][tiny_case.brain[5] > 0].mean(), abs=1e-5)


def test_cropping_to_the_mask_changes_nothing(tiny_case: Case) -> None:
    fused, small = noisy(tiny_case), np.zeros(tiny_case.shape, np.uint8)
    small[4:6, 14:18, 11:15] = 1
    whole = ssim_map(fused, tiny_case.anatomy)[small > 0].mean()
    assert roi_ssim(fused, tiny_case.anatomy, small) == pytest.approx(whole, abs=1e-6)


def test_psnr_is_scikit_images_inside_the_mask(tiny_case: Case) -> None:
    fused, inside = noisy(tiny_case), tiny_case.bone > 0
    expected = peak_signal_noise_ratio(tiny_case.anatomy[inside], fused[inside], data_range=1.0)
    assert roi_psnr(fused, tiny_case.anatomy, tiny_case.bone) == pytest.approx(expected, abs=1e-4)
    half = np.full((2, 8, 8), 0.5, np.float32)
    assert roi_psnr(half, half - 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr_to_sources(half, [half, half - 0.1]) == pytest.approx(20.0 + 10 * np.log10(2), abs=1e-4)


def test_identical_images_and_empty_regions(tiny_case: Case) -> None:
    image, empty = tiny_case.anatomy, np.zeros(tiny_case.shape, np.uint8)
    assert roi_ssim(image, image, tiny_case.brain) == pytest.approx(1.0, abs=1e-6)
    assert roi_psnr(image, image) == PSNR_CAP_DB
    assert np.isnan(roi_ssim(image, image, empty)) and np.isnan(roi_psnr(image, image, empty))
    assert np.isnan(seam_index(image, [image, image], [empty]))


def test_seam_of_a_pasted_step_is_its_gradient() -> None:
    """Two flat sources pasted side by side: the step's Gaussian gradient, averaged over both border pixels."""
    left = np.zeros((1, 24, 24), np.uint8)
    left[:, :, :12] = 1
    low, high = np.full(left.shape, 0.2, np.float32), np.full(left.shape, 0.6, np.float32)
    pasted = np.where(left > 0, low, high).astype(np.float32)
    x = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (x / 0.7) ** 2)
    kernel /= kernel.sum()
    # derivative of a step sampled between two pixels, at the pixel beside it, by SciPy's sampled derivative kernel
    slope = np.abs((-x / 0.7**2 * kernel)[x > 0].sum())
    assert seam_index(pasted, [low, high], [left]) == pytest.approx(255 * 0.4 * slope, rel=1e-3)
    assert seam_index(low, [low, high], [left]) == 0.0
    assert seam_index(pasted, [pasted, high], [left]) == 0.0


def test_band_is_one_pixel_to_either_side() -> None:
    mask = np.zeros((3, 10, 10), np.uint8)
    mask[1, 3:7, 3:7] = 1
    band = border_band(mask)
    assert not band[0].any() and not band[2].any()
    assert band[1].sum() == (4 * 4 - 2 * 2) + 4 * 4
    assert not band[1, 4:6, 4:6].any() and not border_band(np.ones((2, 5, 5), np.uint8)).any()


def test_outside_counts_only_invention(tiny_case: Case) -> None:
    a, c = tiny_case.anatomy, tiny_case.companion
    assert outside_sources((a + c) / 2, a, c) == pytest.approx(0.0, abs=1e-7)
    low, high = np.full((1, 4, 4), 0.2), np.full((1, 4, 4), 0.4)
    assert outside_sources(np.full((1, 4, 4), 0.7), low, high) == pytest.approx(0.3, abs=1e-6)
    assert outside_sources(np.full((1, 4, 4), 0.1), low, high) == pytest.approx(0.1, abs=1e-6)


def test_bad_images_are_refused(tiny_case: Case) -> None:
    a, brain = tiny_case.anatomy, tiny_case.brain
    with pytest.raises(GeometryError, match=r"\(12, 32, 28\).*\(12, 32, 27\)"):
        roi_ssim(a, a[..., :27], brain)
    with pytest.raises(InputError, match=r"\[0, 1\].*\[0, 2"):
        roi_ssim(np.where(brain > 0, 255.0, 0.0), a, brain)
    broken = a.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="1 NaN"):
        roi_psnr(broken, a, brain)
    with pytest.raises(InputError, match="binary"):
        roi_ssim(a, a, brain * 0.5)

"""Gaussian windows as products against SciPy's filter."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from clinfuse.method.band import TRUNCATE, band_matrix, blurred


@pytest.mark.parametrize(
    ("shape", "sigmas"),
    [((9, 24, 31), (0.5, 1.7, 3.2)), ((1, 40, 33), (0.0, 3.0, 2.6)), ((5, 7, 6), (4.0, 0.0, 6.0))],
)
def test_a_blur_equals_an_independent_filter(
    shape: tuple[int, int, int], sigmas: tuple[float, float, float]
) -> None:
    """Anisotropic windows, an axis left as it is, windows longer than the axis."""
    image = np.random.default_rng(5).random(shape, dtype=np.float32)
    before = image.copy()
    ours = blurred(image, sigmas)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        ours, gaussian_filter(image, sigmas, mode="nearest", truncate=TRUNCATE), atol=1e-6
    )
    np.testing.assert_array_equal(image, before)


def test_a_slope_of_a_ramp_is_its_slope() -> None:
    """Of a window cut at five standard deviations, so that what is cut off does not matter."""
    ramp = 0.3 * np.arange(60)
    slope = band_matrix(60, 2.0, 10, "edge", slope=True) @ ramp
    np.testing.assert_allclose(slope[10:-10], 0.3, rtol=1e-4)

"""Masked SSIM against scikit-image, its mask weights, and its gradient."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from skimage.metrics import structural_similarity

from clinfuse.method.filters import gaussian_blur
from clinfuse.method.ssim import ssim_loss, ssim_map


@pytest.mark.parametrize("shape", [(24, 30), (16, 20, 18)])
def test_map_equals_scikit_image(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((2, *shape), generator=generator).numpy()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, expected = structural_similarity(x, y, full=True, **options)
    ours = ssim_map(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None])[0, 0]
    core = tuple(slice(5, -5) for _ in shape)
    torch.testing.assert_close(ours[core], torch.from_numpy(expected)[core], atol=2e-4, rtol=0)


def test_only_masked_windows_count() -> None:
    x = torch.rand((1, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[..., :, 24:] = 0
    left, right = torch.zeros_like(x), torch.zeros_like(x)
    left[..., :16], right[..., 26:] = 1, 1
    assert float(ssim_loss(x, y, left)) == pytest.approx(0, abs=1e-5)
    assert float(ssim_loss(x, y, right)) > 0.5
    assert float(ssim_loss(x, y, torch.zeros_like(x))) == 0


def test_gradient_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand((1, 1, 12, 12), generator=generator, dtype=torch.float64, requires_grad=True)
    y, mask = torch.rand((2, 1, 1, 12, 12), generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda image: ssim_loss(image, y, mask), (x,), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 24), (12, 31, 7), (40, 3)])
@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_blur_equals_an_independent_filter(shape: tuple[int, ...], sigma: float) -> None:
    image = np.random.default_rng(3).random((2, 3, *shape), dtype=np.float32)
    expected = image
    for axis, size in enumerate(shape, start=2):
        mode = "mirror" if size > 5 else "nearest"
        expected = gaussian_filter1d(expected, sigma, axis=axis, mode=mode, radius=5)
    with torch.inference_mode():  # what it keeps here must serve a gradient later
        blurred = gaussian_blur(torch.from_numpy(image), sigma, 5)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)
    tensor = torch.from_numpy(image).requires_grad_(True)
    gaussian_blur(tensor, sigma, 5).sum().backward()
    assert tensor.grad is not None and torch.isfinite(tensor.grad).all()

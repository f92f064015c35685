"""Masked SSIM against scikit-image, its mask weights, and its gradient."""

import pytest
import torch
from skimage.metrics import structural_similarity

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

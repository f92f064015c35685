"""Haar packets: invertible, energy-preserving, and variances add as they should."""

import pytest
import torch

from clinfuse.errors import GeometryError
from clinfuse.method.haar import haar, inverse_haar, inverse_haar_variance

SHAPES = [(2, 1, 8, 12), (2, 3, 8, 4, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 2])
def test_round_trip_and_energy(shape: tuple[int, ...], levels: int) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = haar(image, levels)
    assert bands.shape[1] == shape[1] * 2 ** (levels * (len(shape) - 2))
    torch.testing.assert_close(inverse_haar(bands, levels), image)
    torch.testing.assert_close(bands.square().sum(), image.square().sum())


def test_one_block_by_hand() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    expected = torch.tensor(
        [(1 + 2 + 3 + 5) / 2, (1 - 2 + 3 - 5) / 2, (1 + 2 - 3 - 5) / 2, (1 - 2 - 3 + 5) / 2]
    )
    torch.testing.assert_close(haar(image).flatten(), expected)


@pytest.mark.parametrize("levels", [1, 2])
def test_variance_follows_monte_carlo(levels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    variance = torch.rand((1, 4**levels, 2, 2), generator=generator)
    draws = torch.randn((20000, *variance.shape[1:]), generator=generator) * variance.sqrt()
    expected = inverse_haar(draws, levels).var(dim=0, keepdim=True)
    torch.testing.assert_close(inverse_haar_variance(variance, levels), expected, rtol=0.06, atol=0.01)


def test_odd_axis_is_refused() -> None:
    with pytest.raises(GeometryError, match="even axes"):
        haar(torch.zeros(1, 1, 7, 8))

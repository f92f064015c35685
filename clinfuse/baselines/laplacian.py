"""Laplacian pyramid: keep the stronger detail at each scale, average what remains (Burt and Adelson 1983)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

LEVELS = 4


def laplacian(case: Case, preset: Preset) -> FloatArray:
    """Slice-wise pyramid fusion without masks; (D, H, W) in [0, 1].

    Reference: Burt, Adelson 1983, IEEE Trans. Commun. 31(4); choose-max rule of Burt, Kolczynski 1993.
    """
    x_D1HW = torch.from_numpy(case.anatomy.copy())[:, None]
    y_D1HW = torch.from_numpy(case.companion.copy())[:, None]
    levels = max(1, min(LEVELS, min(case.shape[1:]).bit_length() - 3))
    x_bands, y_bands = pyramid(x_D1HW, levels), pyramid(y_D1HW, levels)
    bands = [torch.where(x.abs() >= y.abs(), x, y) for x, y in zip(x_bands[:-1], y_bands[:-1], strict=True)]
    fused = collapse([*bands, (x_bands[-1] + y_bands[-1]) / 2])
    return fused[:, 0].clamp(0, 1).numpy()


def pyramid(image: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Detail bands from fine to coarse and the rest; (B, 1, H, W) each, `collapse` undoes it exactly."""
    bands = []
    for _ in range(levels):
        smaller = _reduce(image)
        bands.append(image - _expand(smaller, image))
        image = smaller
    return [*bands, image]


def collapse(bands: list[torch.Tensor]) -> torch.Tensor:
    """The image whose `pyramid` this is; (B, 1, H, W)."""
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = band + _expand(image, band)
    return image


def _reduce(image: torch.Tensor) -> torch.Tensor:
    """Blur with the binomial 1 4 6 4 1 in both directions and keep every second pixel."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype, device=image.device) / 16
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, taps.view(1, 1, 5, 1), stride=(2, 1))
    return F.conv2d(rows, taps.view(1, 1, 1, 5), stride=(1, 2))


def _expand(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(image, size=like.shape[-2:], mode="bilinear", align_corners=False)

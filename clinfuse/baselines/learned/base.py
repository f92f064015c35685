"""What every learned baseline is: a network with its own training loss and its own way to fuse a batch of slices.

These are small reimplementations from the papers' descriptions, not the authors' code or weights: all share one
network size, one training loop and one training set, so that a table compares ideas, not budgets. Each class says
what it keeps of its paper and what it leaves out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from clinfuse.errors import ConfigError
from clinfuse.method.diffusion import DiffusionConfig, add_noise, alphas_cumprod, implied_noise
from clinfuse.training.losses import Batch

SHUFFLE = 2
MULTIPLE = 8
MOST_SNR = 5.0


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """Size of a learned baseline.

    Attributes:
        channels: per resolution, multiples of 8; the first resolution is half the image's.
        steps: reverse steps of the diffusion baselines, 1 to 1000.
        adaptation_steps: optimiser steps per case of the test-time-trained baseline, 0 to 1000.
    """

    channels: tuple[int, ...] = (32, 48, 64)
    steps: int = 10
    adaptation_steps: int = 10

    def __post_init__(self) -> None:
        if len(self.channels) != 3 or any(c < 8 or c % 8 for c in self.channels):
            raise ConfigError(
                "channels do not fit", expected="3 multiples of 8", found=f"channels={self.channels}"
            )
        for name, least in (("steps", 1), ("adaptation_steps", 0)):
            if not least <= getattr(self, name) <= 1000:
                raise ConfigError(
                    f"{name} is out of range",
                    expected=f"{least} <= {name} <= 1000",
                    found=f"{name}={getattr(self, name)}",
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values that the constructor takes back."""
        return asdict(self)


class Learned(nn.Module, ABC):
    """A learned baseline.

    Calling it is its training loss, `module(batch, generator) -> (loss, logs)`, so that it runs under any wrapper;
    `fuse` makes F. `trained_as` is the kind whose training this one takes over, where only fusing differs.
    """

    kind: ClassVar[str]
    trained_as: ClassVar[str] = ""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The training loss of one batch of 2D crops (see clinfuse.training.losses.Batch)."""

    @abstractmethod
    def fuse(self, anatomy: Tensor, companion: Tensor, seed: int) -> Tensor:
        """F (B, 1, H, W) in [0, 1] of slices (B, 1, H, W) in [0, 1]; H and W multiples of 8."""


class TimedUNet(nn.Module):
    """A U-Net with time embedding at half resolution: (B, inputs, H, W), (B,) → (B, 1, H, W).

    Pixels go to channels first (2×2), which divides the cost by four and loses nothing; the papers' networks work
    at full resolution and are ten to a hundred times larger.
    """

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=inputs * SHUFFLE**2,
            out_channels=SHUFFLE**2,
            num_res_blocks=1,
            channels=channels,
            attention_levels=[False] * len(channels),
            norm_num_groups=8,
            num_head_channels=8,
        )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return F.pixel_shuffle(self.net(F.pixel_unshuffle(x, SHUFFLE), timesteps), SHUFFLE)


class DiffusionBaseline(Learned):
    """Shared by the diffusion baselines: noise schedule, training loss, and a reverse loop that a subclass may correct.

    The network answers with the image x̂₀, not with the noise. With noise as its output a small network's error at
    noisy steps is divided by √ᾱ: on one slice, 200 steps of training left an RMS of 0.19 (noise to look at), where the
    same network, data and steps left 0.02 with the image as output.

    Symbols as in clinfuse.method.diffusion; images are 2·I − 1.
    """

    alpha_bar: Tensor

    def __init__(self, config: LearnedConfig, inputs: int) -> None:
        super().__init__(config)
        self.unet = TimedUNet(inputs, config.channels)
        self.register_buffer("alpha_bar", alphas_cumprod(DiffusionConfig()), persistent=False)

    def noised(self, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and t of a random step per sample."""
        t = torch.randint(len(self.alpha_bar), (len(x_0),), generator=generator).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        return add_noise(x_0, noise, self.alpha_bar[t]), t

    def noise_loss(self, estimate: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """DDPM's ‖ε̂ − ε‖² = SNR·‖x̂₀ − x₀‖², with the SNR limited so that nearly clean steps do not drown the others.

        Reference: Ho et al. 2020, Eq. 14; Hang et al. 2023, Section 3.4 (Min-SNR-5).
        """
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return ((a / (1 - a)).clamp_max(MOST_SNR) * (estimate - x_0).square()).mean()

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
        """x̂₀ of x_t; all (B, 1, H, W) in [−1, 1], t (B,)."""

    @torch.no_grad()
    def fuse(self, anatomy: Tensor, companion: Tensor, seed: int) -> Tensor:
        """Deterministic DDIM from noise of the seed. Reference: Song, Meng, Ermon 2021, Eq. 12 with η = 0."""
        i, v = 2 * anatomy - 1, 2 * companion - 1
        generator = torch.Generator().manual_seed(seed)
        x = x_0 = torch.randn(i.shape, generator=generator).to(i)
        times = torch.linspace(len(self.alpha_bar) - 1, 0, self.config.steps).round().long()
        for now, after in zip(times, [*times[1:], None], strict=True):
            x_0 = self.estimate(x, now.expand(len(x)).to(x.device), i, v).clamp(-1, 1)
            if after is not None:
                noise = implied_noise(x, x_0, self.alpha_bar[now])
                x = add_noise(x_0, noise, self.alpha_bar[after])
        return (x_0 + 1) / 2

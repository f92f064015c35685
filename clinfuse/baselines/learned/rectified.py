"""Unconditional diffusion rectified by a likelihood of the two sources, after DDFM: no fused image is ever seen."""

from __future__ import annotations

import torch
from torch import Tensor

from clinfuse.baselines.learned.base import DiffusionBaseline, LearnedConfig
from clinfuse.method.filters import gaussian_blur
from clinfuse.training.losses import Batch

COUPLING, SMOOTH_SIGMA, FLOOR = 1.0, 0.5, 0.05


class DDFM(DiffusionBaseline):
    """A diffusion model of single images; each step's estimate is moved to the likeliest image given both sources.

    Kept: an unconditional prior, x = f − v and y = i − v with Laplace-distributed y − x and x, one EM step per
    reverse step. Left out: the natural-image network (ours is trained on the slices of both modalities), the total
    variation term, for which a slight blur of the estimate stands, and a weight of ½ on x, which on MRI and CT leaves
    hardly more than the MRI: both sources weigh alike.

    Reference: Zhao et al. 2023, ICCV, DDFM, Eq. 9 to 21.
    """

    kind = "ddfm"

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__(config, 1)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        which = torch.rand(len(batch["anatomy"]), generator=generator).to(batch["anatomy"]) < 0.5
        x_0 = 2 * torch.where(which.view(-1, 1, 1, 1), batch["anatomy"], batch["companion"]) - 1
        x_t, t = self.noised(x_0, generator)
        loss = self.noise_loss(self.unet(x_t, t), x_0, t)
        return loss, {"loss": float(loss.detach())}

    def estimate(self, x_t: Tensor, t: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
        return rectified(self.unet(x_t, t).clamp(-1, 1), anatomy, companion)


def rectified(estimate: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
    """One EM step: f between i and v by ‖i − f‖₁ + ‖f − v‖₁, and near the estimate; all (B, 1, H, W) in [−1, 1]."""
    y = anatomy - companion
    x = estimate - companion
    # E-step: expected inverse scales of both Laplace terms; M-step: the weighted quadratic's minimum
    m = 1 / (y - x).abs().clamp_min(FLOOR)
    n = 1 / x.abs().clamp_min(FLOOR)
    u = gaussian_blur(estimate, SMOOTH_SIGMA, 1) - companion
    return (m * y + COUPLING * u) / (m + n + COUPLING) + companion

"""Conditional diffusion fusion after FusionDiff and Diff-IF: the same network, different targets and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from clinfuse.baselines.laplacian import collapse, pyramid
from clinfuse.baselines.learned.base import DiffusionBaseline, LearnedConfig
from clinfuse.baselines.learned.selfloss import fusion_loss
from clinfuse.method.prior import fusion_prior
from clinfuse.presets import load_presets
from clinfuse.training.losses import Batch, inputs_of

CONDITIONED_INPUTS = 3
DEFAULT_PRESET = "balanced"
SEARCH_LEVELS = 3


class FusionDiff(DiffusionBaseline):
    """DDPM conditioned on both sources by concatenation, trained by the loss on the noise.

    Kept: a denoiser of (x_t, t, I_M, I_C), supervised training, deterministic sampling. Left out: the noise as the
    network's direct output (see `DiffusionBaseline`) and the paper's multi-focus data with true fused images; here
    the target is the fusion prior, as for our own model.

    Reference: FusionDiff, 2024, image fusion by conditional denoising diffusion probabilistic models.
    """

    kind = "fusiondiff"

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__(config, CONDITIONED_INPUTS)

    def target(self, batch: Batch) -> Tensor:
        """x₀ (B, 1, H, W) in [0, 1]."""
        vector = torch.tensor([load_presets()[DEFAULT_PRESET].vector]).to(batch["anatomy"])
        vectors = vector.expand(len(batch["anatomy"]), -1)
        return fusion_prior(inputs_of(batch, batch["aligned"], vectors))

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            x_0 = 2 * self.target(batch) - 1
        x_t, t = self.noised(x_0, generator)
        i, v = 2 * batch["anatomy"] - 1, 2 * batch["companion"] - 1
        loss = self.loss(self.estimate(x_t, t, i, v), x_0, t)
        return loss, {"loss": float(loss.detach())}

    def loss(self, estimate: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """What is minimised."""
        return self.noise_loss(estimate, x_0, t)

    def estimate(self, x_t: Tensor, t: Tensor, anatomy: Tensor, companion: Tensor) -> Tensor:
        return self.unet(torch.cat([x_t, anatomy, companion], dim=1), t)


class DiffIF(FusionDiff):
    """Conditional diffusion trained by the loss on the image, towards the best of existing fusions per sample.

    Kept: the "fusion knowledge prior" found by targeted search among existing methods, conditional diffusion with
    few steps that predicts the image itself. Left out: learned candidate methods; the search is over maximum, mean
    and two pyramid rules, judged by the self-supervised fusion loss.

    Reference: Yi et al. 2024, Information Fusion 110 (Diff-IF).
    """

    kind = "diffif"

    def target(self, batch: Batch) -> Tensor:
        anatomy, companion = batch["anatomy"], batch["aligned"]
        found = torch.stack(candidates(anatomy, companion))
        scores = torch.stack([fusion_loss(f, anatomy, companion) for f in found])
        return found[scores.argmin(dim=0), torch.arange(len(anatomy))]

    def loss(self, estimate: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        return (estimate - x_0).abs().mean()


def candidates(anatomy: Tensor, companion: Tensor) -> list[Tensor]:
    """Fusions to choose the target from, each (B, 1, H, W) in [0, 1]."""
    brighter = torch.maximum(anatomy, companion)
    x, y = pyramid(anatomy, SEARCH_LEVELS), pyramid(companion, SEARCH_LEVELS)
    details = [torch.where(a.abs() >= b.abs(), a, b) for a, b in zip(x[:-1], y[:-1], strict=True)]
    rest = ((x[-1] + y[-1]) / 2, torch.maximum(x[-1], y[-1]))
    return [brighter, (anatomy + companion) / 2, *(collapse([*details, r]).clamp(0, 1) for r in rest)]

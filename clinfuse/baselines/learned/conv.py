"""Convolutional fusion of the IFCNN/EMFusion kind, and its test-time-trained form after TTTFusion."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from clinfuse.baselines.learned.base import Learned, LearnedConfig
from clinfuse.baselines.learned.selfloss import fusion_loss
from clinfuse.training.losses import Batch

ADAPTATION_RATE = 5e-4


class ConvFusion(Learned):
    """One encoder for both sources, element-wise maximum of features, one decoder; self-supervised.

    Kept: shared encoder, maximum rule, fully convolutional decoder, losses without a target. Left out: IFCNN's
    pretrained first layer and perceptual loss, EMFusion's unique-channel constraints.

    Reference: Zhang et al. 2020, Information Fusion 54 (IFCNN); Xu, Ma 2021, Information Fusion 76 (EMFusion).
    """

    kind = "conv"

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__(config)
        # at full resolution; half the channels make its cost that of the U-Nets at half resolution
        a, b, c = (n // 2 for n in config.channels)
        self.encoder = nn.Sequential(_block(1, a), _block(a, b), _block(b, c))
        self.decoder = nn.Sequential(_block(c, b), _block(b, a), nn.Conv2d(a, 1, 1))

    def combine(self, anatomy: Tensor, companion: Tensor) -> Tensor:
        """F (B, 1, H, W) in (0, 1), differentiable."""
        features = torch.maximum(self.encoder(anatomy), self.encoder(companion))
        return torch.sigmoid(self.decoder(features))

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        sources = batch["anatomy"], batch["companion"]
        loss = fusion_loss(self.combine(*sources), *sources).mean()
        return loss, {"fusion": float(loss.detach())}

    @torch.no_grad()
    def fuse(self, anatomy: Tensor, companion: Tensor, seed: int) -> Tensor:
        return self.combine(anatomy, companion)


class TestTimeFusion(ConvFusion):
    """`ConvFusion` that goes on training on the slices it is asked to fuse, on a copy of itself.

    Kept: adaptation of the parameters to each input at inference by the training loss. Left out: the paper's own
    network and its surgical-robot pipeline.

    Reference: TTTFusion, 2025, test-time training for multimodal medical image fusion.
    """

    __test__ = False  # not a test class, whatever its name begins with
    kind = "test_time"
    trained_as = "conv"

    def fuse(self, anatomy: Tensor, companion: Tensor, seed: int) -> Tensor:
        own = deepcopy(self).requires_grad_(True)
        optimizer = torch.optim.Adam(own.parameters(), lr=ADAPTATION_RATE)
        with torch.enable_grad():
            for _ in range(self.config.adaptation_steps):
                optimizer.zero_grad(set_to_none=True)
                fusion_loss(own.combine(anatomy, companion), anatomy, companion).mean().backward()
                optimizer.step()
        with torch.no_grad():
            return own.combine(anatomy, companion)


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate"), nn.SiLU())

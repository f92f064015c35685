"""The lesion head Ŝ: a small MONAI segmentation network for MRI, CT and fused images, frozen once trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import pad_to_multiple

POSITIVE_WEIGHT = 2.0
CROSS_ENTROPY_WEIGHT = 5.0


@dataclass(frozen=True, kw_only=True)
class LesionHeadConfig:
    """Size of the lesion head: spatial_dims 2 or 3, channels per resolution."""

    spatial_dims: int = 2
    channels: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        if self.spatial_dims not in (2, 3) or len(self.channels) < 2:
            raise ConfigError(
                "lesion head: impossible size", expected="2 or 3 dims, 2+ levels", found=str(self)
            )


class LesionHead(nn.Module):
    """Ŝ(F) of Section 3.1: probability of lesion per voxel, from one image whatever its modality."""

    def __init__(self, config: LesionHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.net = UNet(
            spatial_dims=config.spatial_dims,
            in_channels=1,
            out_channels=1,
            channels=config.channels,
            strides=[2] * (len(config.channels) - 1),
            num_res_units=1,
            norm="BATCH",
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, *S) in [0, 1] → logits (B, 1, *S), any size."""
        padded, undo = pad_to_multiple(image, 2 ** (len(self.config.channels) - 1))
        return self.net(2 * padded - 1)[undo]

    def probability(self, image: Tensor) -> Tensor:
        """(B, 1, *S) in [0, 1] → probability of lesion (B, 1, *S)."""
        return torch.sigmoid(self(image))

    def freeze(self) -> LesionHead:
        """No more training: gradients pass through to the image, never into the weights."""
        return self.eval().requires_grad_(False)


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice plus five times the cross-entropy of a batch, scalar; lesion voxels count twice in the latter.

    Slices without lesion count through the cross-entropy.

    Reference: Milletari et al., 3DV 2016 (Dice); Isensee et al., Nature Methods 2021.
    """
    loss = DiceLoss(sigmoid=True, batch=True)(logits, mask)
    weight = torch.where(mask > 0, POSITIVE_WEIGHT, 1.0)
    return loss + CROSS_ENTROPY_WEIGHT * F.binary_cross_entropy_with_logits(logits, mask, weight=weight)

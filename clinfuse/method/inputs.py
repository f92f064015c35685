"""What a batch of pairs brings: its images, its regions, the preset, and whether the companion is a CT."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """A batch of pairs, as prior, refined prior and denoiser take it; *S two or three spatial axes.

    Attributes:
        anatomy, companion: (B, 1, *S) in [0, 1].
        masks: (B, 3, *S) in {0, 1}, brain, bone, lesion; of SPECT and PET "bone" is the uptake.
        vector: (B, 6) preset vectors (`Preset.vector`): the shares of α, β, γ, λ₁, λ₂, λ₃.
        ct: (B,), 1 where the companion is a CT, 0 for SPECT and PET.
    """

    anatomy: Tensor
    companion: Tensor
    masks: Tensor
    vector: Tensor
    ct: Tensor

    @property
    def rois(self) -> tuple[Tensor, Tensor, Tensor]:
        """Brain, bone and lesion, (B, 1, *S) each."""
        brain, bone, lesion = self.masks.split(1, dim=1)
        return brain, bone, lesion


def per_voxel(values: Tensor, image: Tensor) -> Tensor:
    """One value per sample (B,), shaped so as to act on images (B, 1, *S)."""
    return values.reshape(-1, *[1] * (image.ndim - 1)).to(image)

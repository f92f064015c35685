"""The clinical composite ROI loss L_ROI (Eq. 2; Algorithm 1, lines 5 to 9), per sample and differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clinfuse.errors import ConfigError
from clinfuse.method.generalized_surface import surface_border_loss
from clinfuse.method.inputs import per_voxel
from clinfuse.method.lesion_head import LesionHead
from clinfuse.method.ssim import ssim_loss
from clinfuse.method.surface_loss import LesionTarget, dice_loss, lesion_losses, lesion_target, nsd_loss
from clinfuse.presets import Preset

BORDERS = ("hd95", "surface")
"""What L_HD95 of Eq. 2 may be: the soft HD95 itself, or the generalized surface loss (Eq. 2's alternative)."""


@dataclass(frozen=True, kw_only=True)
class RoiReference:
    """What F is compared with: images and masks (B, 1, *S), and the lesion target of S* (None: no lesion term).

    `border` is one of BORDERS.
    """

    anatomy: Tensor
    companion: Tensor
    brain: Tensor
    bone: Tensor
    target: LesionTarget | None
    border: str = "hd95"

    def __post_init__(self) -> None:
        require_border(self.border)


@dataclass(frozen=True, kw_only=True)
class RoiTerms:
    """Terms of L_ROI, each (B,); `hd` is L_HD95, whatever stands for it; the lesion terms are 0 where
    `lesion_present` is False (absent S*)."""

    brain: Tensor
    bone: Tensor
    dice: Tensor
    nsd: Tensor
    hd: Tensor
    lesion_present: Tensor

    def means(self) -> dict[str, float]:
        """Batch means by name, for logs; lesion terms over the samples that have a lesion (absent: no entry)."""
        logs = {"brain": float(self.brain.detach().mean()), "bone": float(self.bone.detach().mean())}
        if bool(self.lesion_present.any()):
            here = self.lesion_present
            logs |= {k: float(getattr(self, k).detach()[here].mean()) for k in ("dice", "nsd", "hd")}
        return logs


@dataclass(frozen=True, kw_only=True)
class RoiWeights:
    """(α, β, γ) and (λ₁, λ₂, λ₃) of Eq. 2, each a (B,) tensor or a float."""

    alpha: Tensor | float
    beta: Tensor | float
    gamma: Tensor | float
    lambda_dice: Tensor | float
    lambda_nsd: Tensor | float
    lambda_hd: Tensor | float

    @classmethod
    def of(cls, preset: Preset) -> RoiWeights:
        """The weights of one preset."""
        return cls(**{name: getattr(preset, name) for name in cls.__dataclass_fields__})

    @classmethod
    def from_vector(cls, vector: Tensor) -> RoiWeights:
        """Weights from conditioning vectors (B, 6), scaled so that each group sums to 3."""
        return cls(**dict(zip(cls.__dataclass_fields__, (3 * vector).unbind(dim=1), strict=True)))


def require_border(name: str) -> None:
    """Raises ConfigError unless the name is one of BORDERS."""
    if name not in BORDERS:
        raise ConfigError("unknown border term", expected=" or ".join(BORDERS), found=repr(name))


def roi_reference(
    anatomy: Tensor,
    companion: Tensor,
    masks: Tensor,
    spacing_mm: tuple[float, ...],
    tau_mm: float,
    border: str = "hd95",
) -> RoiReference:
    """Prepare the comparison once per image, so that every reverse step only evaluates it.

    Args:
        anatomy, companion: (B, 1, *S) in [0, 1].
        masks: (B, 3, *S) brain, bone, lesion (S*).
        spacing_mm: voxel spacing along the spatial axes, mm.
        tau_mm: border tolerance τ, mm.
        border: what L_HD95 is, one of BORDERS.
    """
    brain, bone, lesion = masks.split(1, dim=1)
    target = lesion_target(lesion, spacing_mm, tau_mm) if bool(lesion.any()) else None
    return RoiReference(
        anatomy=anatomy, companion=companion, brain=brain, bone=bone, target=target, border=border
    )


def held(fused: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """F (B, 1, *S) itself, but only a share (B,) of the gradient reaches voxels under the mask (B, 1, *S) in {0, 1}."""
    kept = 1 - mask * (1 - per_voxel(share, mask))
    value = fused.detach()
    return value + kept * (fused - value)


def border_share(ct: Tensor) -> Tensor:
    """How much of its gradient a region's term keeps in the other region, (B,): none in CT, all in SPECT and PET.

    SSIM windows reach over the border. Bone ends where the cortex begins, and a target or a network that follows the
    whole gradient shows CT over that cortex for a better score of the skull. A tracer's region ends at a threshold
    amid the brain, so there is no tissue of the other kind to keep.

    Args:
        ct: (B,), 1 where the companion is a CT, 0 for SPECT and PET.
    """
    return 1 - ct


def roi_terms(
    fused: Tensor, reference: RoiReference, lesion_head: LesionHead | None, *, share: Tensor | None = None
) -> RoiTerms:
    """The five terms for F (B, 1, *S) in [0, 1]; without lesion head or S* the lesion terms are 0 and absent.

    Args:
        share: (B,) how much of its gradient the brain's term keeps in bone, and the bone's in brain (`border_share`);
            None: all of it.
    """
    for_brain, for_bone = fused, fused
    if share is not None:
        for_brain, for_bone = held(fused, reference.bone, share), held(fused, reference.brain, share)
    brain = ssim_loss(for_brain, reference.anatomy, reference.brain)
    bone = ssim_loss(for_bone, reference.companion, reference.bone)
    target = reference.target
    if lesion_head is None or target is None:
        zero = torch.zeros_like(brain)
        absent = torch.zeros_like(brain, dtype=torch.bool)
        return RoiTerms(brain=brain, bone=bone, dice=zero, nsd=zero, hd=zero, lesion_present=absent)
    prob = lesion_head.probability(fused)
    if reference.border == "surface":
        dice, nsd, hd = (term(prob, target) for term in (dice_loss, nsd_loss, surface_border_loss))
    else:
        dice, nsd, hd = lesion_losses(prob, target)
    return RoiTerms(brain=brain, bone=bone, dice=dice, nsd=nsd, hd=hd, lesion_present=target.present)


def composite(terms: RoiTerms, weights: RoiWeights) -> Tensor:
    """L_ROI (B,): α·L_brain + β·L_bone + γ·(λ₁·L_Dice + λ₂·L_NSDτ + λ₃·L_HD95), Eq. 2."""
    lesion = weights.lambda_dice * terms.dice + weights.lambda_nsd * terms.nsd + weights.lambda_hd * terms.hd
    return weights.alpha * terms.brain + weights.beta * terms.bone + weights.gamma * lesion

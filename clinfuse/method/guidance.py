"""The guided part of the reverse step: −η^eff ∇L_ROI − η_u ∇U (Eq. 1, Algorithm 1, line 10).

Gradients are those of the per-voxel sum (mean loss times voxel count), so that η means the same on a crop, a slice
and a volume; each sample's gradient depends on that sample alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from clinfuse.case import HEAD_LEVEL
from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import Denoiser, Encoded, Estimate, to_image
from clinfuse.method.inputs import Inputs
from clinfuse.method.lesion_head import LesionHead
from clinfuse.method.roi_loss import (
    RoiReference,
    RoiTerms,
    RoiWeights,
    composite,
    require_border,
    roi_reference,
    roi_terms,
)
from clinfuse.method.uncertainty import (
    effective_strength,
    mean_uncertainty,
    predicted_std,
    saturating,
    to_haar_grid,
)
from clinfuse.presets import Preset

CUT_SHARE_WARNING = 0.05
"""Share of a sample's change, by size, above which clipping is told. In 4 to 10 steps the released model mostly loses
less than 0.03 by the presets' own η (up to 0.2 where a lesion is hard to see), and 0.1 to 0.7 by ten times as much."""
REFERENCE_STEPS = 10
"""Reverse steps at which a step takes all of η and η_u; of N steps each takes 10/N.

With the default `anchor_std` the last step does nearly all of it: what earlier ones changed in x_t the denoiser
replaces by its own estimate, but for a few per cent at most. The last step's gradient is the steeper the more steps
there are, as it is taken at less noise: whole at each of 50 steps, what is right at 10 overshoots, and the lesion terms
lower the Dice that they should raise.
"""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How gradients enter the reverse step, and of what.

    Attributes:
        gradient: "exact" (through the denoiser to x_t) or "cheap" (taken at the denoised estimate, carried to x_t
            without the network's own dependence on it; no backward pass through the network).
        clip: largest change of one subband coefficient per step, Haar units, > 0.
        start: share of the reverse steps, counted from the noisy end, that stay unguided, 0 to 1.
        border: what L_HD95 of Eq. 2 is, "hd95" or "surface" (the generalized surface loss).
    """

    gradient: str = "exact"
    clip: float = 0.2
    start: float = 0.0
    border: str = "hd95"

    def __post_init__(self) -> None:
        require_border(self.border)
        if self.gradient not in ("exact", "cheap"):
            raise ConfigError("unknown gradient", expected="exact or cheap", found=self.gradient)
        if self.clip <= 0 or not 0 <= self.start <= 1:
            raise ConfigError("guidance out of range", expected="clip > 0, 0 <= start <= 1", found=str(self))


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Everything the guided step needs beside the denoiser: reference, frozen head, preset and maps.

    Attributes:
        head_mask: (B, 1, *S) where U is averaged.
    """

    reference: RoiReference
    lesion_head: LesionHead | None
    preset: Preset
    head_mask: Tensor
    config: GuidanceConfig = GuidanceConfig()

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        spacing_mm: tuple[float, ...],
        lesion_head: LesionHead | None,
        preset: Preset,
        config: GuidanceConfig | None = None,
    ) -> Guide:
        """For a batch whose images are their own reference, of that voxel spacing along *S."""
        anatomy, companion, masks = inputs[:3]
        config = config or GuidanceConfig()
        return cls(
            reference=roi_reference(anatomy, companion, masks, spacing_mm, preset.tau_mm, config.border),
            lesion_head=lesion_head,
            preset=preset,
            head_mask=((anatomy > HEAD_LEVEL) | (companion > HEAD_LEVEL)).float(),
            config=config,
        )


@dataclass(frozen=True, kw_only=True)
class GuidedStep:
    """One evaluated step: the members' mean estimate, the change to subtract from g_θ, terms of L_ROI, L_ROI, U."""

    estimate: Estimate
    change: Tensor
    terms: RoiTerms
    loss: Tensor
    uncertainty: Tensor


def mean_estimate(estimates: list[Estimate]) -> Estimate:
    """The ensemble's mean x̂₀, gate and residual; log of the mean variance."""
    if len(estimates) == 1:
        return estimates[0]
    parts = [torch.stack(p).mean(dim=0) for p in zip(*estimates, strict=True)]
    variance = torch.stack([e.log_variance.exp() for e in estimates]).mean(dim=0)
    return Estimate(parts[0], variance.log(), parts[2], parts[3])


def guided_step(
    denoisers: list[Denoiser],
    x_t: Tensor,
    timesteps: Tensor,
    encoded: list[Encoded],
    guide: Guide,
    share: float = 1.0,
) -> GuidedStep:
    """Evaluate one guided step at x_t (B, n, *Z).

    Args:
        share: of η and η_u that this step takes, `REFERENCE_STEPS` / reverse steps.

    Returns:
        Its `change` is share · (η^eff ⊙ ∇L_ROI + η_u ∇U), clipped; subtract it from g_θ(x_t, t | c).
    """
    exact = guide.config.gradient == "exact"
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_(exact)
        with torch.set_grad_enabled(exact):
            estimates = [d.denoise(x_t, timesteps, c) for d, c in zip(denoisers, encoded, strict=True)]
        if not exact:
            estimates = [e._replace(x_0=e.x_0.detach().requires_grad_()) for e in estimates]
        estimate = mean_estimate(estimates)
        levels = denoisers[0].config.levels
        fused = to_image(estimate.x_0, levels)
        terms = roi_terms(fused, guide.reference, guide.lesion_head)
        loss = composite(terms, RoiWeights.of(guide.preset))
        std = predicted_std(estimates, levels)
        doubt = mean_uncertainty(std, guide.head_mask)
        points = [x_t] if exact else [e.x_0 for e in estimates]
        gain = None if exact else denoisers[0].direct_gain(timesteps)
        grad_roi = _gradient(loss, points, gain, guide.preset.eta)
        grad_u = _gradient(doubt, points, gain, guide.preset.eta_u)
    change = _weighted_change(share * grad_roi, share * grad_u, std.detach(), guide, levels)
    return GuidedStep(
        estimate=Estimate(*(part.detach() for part in estimate)),
        change=change,
        terms=terms,
        loss=loss.detach(),
        uncertainty=doubt.detach(),
    )


def _gradient(loss: Tensor, points: list[Tensor], gain: Tensor | None, strength: float) -> Tensor:
    """∇ of the per-voxel sum of a (B,) mean loss; zero, without a backward pass, if it will count for nothing.

    With a gain the gradients at the members' estimates are added up and carried to x_t by that factor per sample.
    """
    if not loss.requires_grad or strength == 0:
        return torch.zeros_like(points[0])
    voxels = points[0][0].numel()
    parts = torch.autograd.grad(loss.sum() * voxels, points, retain_graph=True, allow_unused=True)
    total = sum((p for p in parts if p is not None), torch.zeros_like(points[0]))
    return total if gain is None else total * gain.reshape(-1, *[1] * (total.ndim - 1))


def _weighted_change(grad_roi: Tensor, grad_u: Tensor, std: Tensor, guide: Guide, levels: int) -> Tensor:
    """η^eff ⊙ ∇L_ROI + η_u ∇U with every coefficient clipped; what is not finite counts as zero; both are told."""
    uncertainty = to_haar_grid(saturating(std), levels)
    strength = effective_strength(uncertainty, guide.preset.eta, guide.preset.kappa)
    change = strength * grad_roi + guide.preset.eta_u * grad_u
    finite = torch.isfinite(change)
    if not bool(finite.all()):
        share = f"{float((~finite).float().mean()):.1%}"
        warnings.warn(
            f"guidance is not finite in {share} of the coefficients: they stay unguided",
            RuntimeWarning,
            stacklevel=3,
        )
    change = torch.where(finite, change, 0.0)
    kept = change.clamp(-guide.config.clip, guide.config.clip)
    lost, whole = ((part.abs().flatten(1).sum(dim=1)) for part in (change - kept, change))
    if bool((lost > CUT_SHARE_WARNING * whole).any()):
        warnings.warn(
            "guidance is too strong and is clipped: lower eta or eta_u", RuntimeWarning, stacklevel=3
        )
    return kept

"""The guided part of the reverse step: −η^eff ∇L_ROI − η_u ∇U (Eq. 1, Algorithm 1, line 10).

Gradients are those of the per-voxel sum (mean loss times voxel count), so that η means the same on a crop, a slice
and a volume; each sample's gradient depends on that sample alone.
"""

from __future__ import annotations

import math
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

With the default `anchor_std` the last step does nearly all of what the exact gradient does: what earlier ones changed
in x_t the denoiser replaces by its own estimate, but for a few per cent at most. The last step's gradient is the
steeper the more steps there are, as it is taken at less noise: whole at each of 50 steps, what is right at 10
overshoots, and the lesion terms lower the Dice that they should raise.
"""
CHEAP_SHARE = 0.01
"""Of η that a cheap gradient takes: at the estimate it is not dampened by the denoiser, which hardly follows x_t."""
CHEAP_ROUNDS = 2
"""In so many rounds a step takes all of η by cheap gradients; in one, the lesion head's slope overshoots."""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How gradients enter the reverse step, and of what.

    Attributes:
        gradient: "exact", ∇ by x_t through the denoiser (Eq. 1), or "cheap", ∇ by the denoised estimate, which needs
            no backward pass through the network. What the cheap one changes is carried from estimate to estimate and
            at last taken from x₀, while x_t goes its way unguided; of U it sees nothing, so η_u does nothing.
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
    """One evaluated step.

    Attributes:
        estimate: the members' mean, unguided by a cheap gradient.
        change: to subtract from g_θ; 0 with a cheap gradient.
        carried: to subtract from the estimate, by this step and all before it; 0 with the exact gradient.
        terms, loss: of L_ROI, and L_ROI.
        uncertainty: U.
    """

    estimate: Estimate
    change: Tensor
    carried: Tensor
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
    carried: Tensor | None = None,
) -> GuidedStep:
    """Evaluate one guided step at x_t (B, n, *Z).

    Args:
        share: of η and η_u that this step takes, `REFERENCE_STEPS` / reverse steps.
        carried: what the steps before changed in the estimate by cheap gradients, (B, n, *Z); None: nothing.

    Returns:
        With the exact gradient its `change` is share · (η^eff ⊙ ∇L_ROI + η_u ∇U), clipped. With the cheap one `carried`
        grows by share · CHEAP_SHARE · η^eff ⊙ ∇L_ROI, in the more rounds the larger the share, each at what the last
        one left, so that few reverse steps descend as far as many.

    Reference: proposal, Eq. 1; gradients at the estimate: He et al., Manifold preserving guided diffusion, ICLR 2024.
    """
    carried = torch.zeros_like(x_t) if carried is None else carried
    if guide.config.gradient == "cheap":
        return _at_the_estimate(denoisers, x_t, timesteps, encoded, guide, share, carried)
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        estimates = [d.denoise(x_t, timesteps, c) for d, c in zip(denoisers, encoded, strict=True)]
        estimate = mean_estimate(estimates)
        terms, loss = _loss_at(estimate.x_0, denoisers[0], guide)
        std = predicted_std(estimates, denoisers[0].config.levels)
        doubt = mean_uncertainty(std, guide.head_mask)
        grad_roi = _gradient(loss, x_t, guide.preset.eta)
        grad_u = _gradient(doubt, x_t, guide.preset.eta_u)
    change = share * (_strength(std.detach(), guide, denoisers[0]) * grad_roi + guide.preset.eta_u * grad_u)
    return GuidedStep(
        estimate=Estimate(*(part.detach() for part in estimate)),
        change=_clipped(change, guide.config.clip),
        carried=carried,
        terms=terms,
        loss=loss.detach(),
        uncertainty=doubt.detach(),
    )


def _at_the_estimate(
    denoisers: list[Denoiser],
    x_t: Tensor,
    timesteps: Tensor,
    encoded: list[Encoded],
    guide: Guide,
    share: float,
    carried: Tensor,
) -> GuidedStep:
    with torch.no_grad():
        estimates = [d.denoise(x_t, timesteps, c) for d, c in zip(denoisers, encoded, strict=True)]
        estimate = mean_estimate(estimates)
        std = predicted_std(estimates, denoisers[0].config.levels)
        strength = CHEAP_SHARE * _strength(std, guide, denoisers[0])
    rounds = math.ceil(CHEAP_ROUNDS * share)
    for _ in range(rounds):
        with torch.enable_grad():
            x_0 = (estimate.x_0 - carried).requires_grad_()
            terms, loss = _loss_at(x_0, denoisers[0], guide)
            gradient = _gradient(loss, x_0, guide.preset.eta)
        carried = carried + _clipped(share / rounds * strength * gradient, guide.config.clip / rounds)
    return GuidedStep(
        estimate=estimate,
        change=torch.zeros_like(x_t),
        carried=carried,
        terms=terms,
        loss=loss.detach(),
        uncertainty=mean_uncertainty(std, guide.head_mask),
    )


def _loss_at(x_0: Tensor, denoiser: Denoiser, guide: Guide) -> tuple[RoiTerms, Tensor]:
    terms = roi_terms(to_image(x_0, denoiser.config.levels), guide.reference, guide.lesion_head)
    return terms, composite(terms, RoiWeights.of(guide.preset))


def _gradient(loss: Tensor, point: Tensor, strength: float) -> Tensor:
    """∇ of the per-voxel sum of a (B,) mean loss; zero, without a backward pass, if it will count for nothing."""
    if not loss.requires_grad or strength == 0:
        return torch.zeros_like(point)
    total = loss.sum() * point[0].numel()
    (gradient,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient


def _strength(std: Tensor, guide: Guide, denoiser: Denoiser) -> Tensor:
    """η^eff on the Haar grid (B, 1, *Z) for a predicted standard deviation (B, 1, *S), Eq. 4."""
    uncertainty = to_haar_grid(saturating(std), denoiser.config.levels)
    return effective_strength(uncertainty, guide.preset.eta, guide.preset.kappa)


def _clipped(change: Tensor, largest: float) -> Tensor:
    """Every coefficient within ±largest; what is not finite counts as zero; both are told."""
    finite = torch.isfinite(change)
    if not bool(finite.all()):
        share = f"{float((~finite).float().mean()):.1%}"
        warnings.warn(
            f"guidance is not finite in {share} of the coefficients: they stay unguided",
            RuntimeWarning,
            stacklevel=4,
        )
    change = torch.where(finite, change, 0.0)
    kept = change.clamp(-largest, largest)
    lost, whole = ((part.abs().flatten(1).sum(dim=1)) for part in (change - kept, change))
    if bool((lost > CUT_SHARE_WARNING * whole).any()):
        warnings.warn(
            "guidance is too strong and is clipped: lower eta or eta_u", RuntimeWarning, stacklevel=4
        )
    return kept

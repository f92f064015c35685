"""Algorithm 1: the ROI-aware guided reverse diffusion, one loop for 2D and 3D, teacher and student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clinfuse.method.denoiser import Denoiser, Encoded, Estimate, to_image, to_image_variance
from clinfuse.method.diffusion import DiffusionConfig, make_scheduler, noise_like
from clinfuse.method.guidance import REFERENCE_STEPS, Guide, GuidedStep, guided_step, mean_estimate
from clinfuse.method.inputs import Inputs

Callback = Callable[[int, int, GuidedStep | None], None]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """F = x₀ with what the model said of it, each (B, 1, *S).

    Attributes:
        fused: image in [0, 1].
        variance: aleatoric variance of the last estimate, image units².
        residual: what F holds beyond its sources' gated mixture, image units (hallucination measure).
    """

    fused: Tensor
    variance: Tensor
    residual: Tensor


def sample(
    denoisers: list[Denoiser],
    inputs: Inputs,
    *,
    diffusion: DiffusionConfig,
    steps: int,
    generators: list[torch.Generator],
    guide: Guide | None = None,
    callback: Callback | None = None,
) -> Sampled:
    """Run the reverse process from pure noise.

    Args:
        denoisers: one model, or several whose estimates are averaged at every step.
        inputs: images (B, 1, *S), axes divisible by the denoiser's `multiple`, masks and preset vectors.
        steps: reverse steps, 1 to T.
        generators: one per sample, on the sample's device.
        guide: ROI and uncertainty guidance; None is the plain conditional sampler g_θ.
        callback: called as (step, steps, guided step or None) after every step.

    Returns:
        Sampled; every tensor (B, 1, *S).

    Reference: proposal, Eq. 1 and Algorithm 1.
    """
    with torch.no_grad():
        encoded = [d.encode(inputs) for d in denoisers]
    return sample_encoded(
        denoisers,
        encoded,
        diffusion=diffusion,
        steps=steps,
        generators=generators,
        guide=guide,
        callback=callback,
    )


def sample_encoded(
    denoisers: list[Denoiser],
    encoded: list[Encoded],
    *,
    diffusion: DiffusionConfig,
    steps: int,
    generators: list[torch.Generator],
    guide: Guide | None = None,
    callback: Callback | None = None,
) -> Sampled:
    """As `sample`, from what each denoiser has encoded already."""
    scheduler = make_scheduler(diffusion, steps)
    levels = denoisers[0].config.levels
    with torch.no_grad():
        x_t = noise_like(tuple(encoded[0].z_prior.shape), generators)
        carried = torch.zeros_like(x_t)
        for index, t in enumerate(scheduler.timesteps):
            timesteps = torch.full((x_t.shape[0],), int(t), device=x_t.device)
            step = None
            if guide is not None and index >= guide.config.start * steps:
                share = REFERENCE_STEPS / steps
                step = guided_step(denoisers, x_t, timesteps, encoded, guide, share, carried)
            if step is None:
                estimate = mean_estimate(
                    [d.denoise(x_t, timesteps, c) for d, c in zip(denoisers, encoded, strict=True)]
                )
            else:
                estimate = step.estimate
            x_t = _reverse(scheduler, estimate, t, x_t, generators)
            if step is not None:
                x_t, carried = x_t - step.change, step.carried
            if callback is not None:
                callback(index + 1, steps, step)
    return Sampled(
        fused=to_image(x_t - carried, levels).clamp(0, 1),
        variance=to_image_variance(estimate.log_variance, levels),
        residual=to_image(estimate.residual, levels) - 0.5,
    )


def _reverse(
    scheduler: Any, estimate: Estimate, t: Tensor, x_t: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """g_θ(x_t, t | c) by the scheduler's own formula."""
    options = {"generator": generators} if scheduler.__class__.__name__ in ("DDPMScheduler",) else {}
    return scheduler.step(estimate.x_0, t, x_t, **options).prev_sample

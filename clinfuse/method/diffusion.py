"""Noise schedules and reverse-step formulas, all from diffusers' schedulers.

Symbols: ᾱ_t cumulative signal share, x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε, σ_t = √((1−ᾱ_t)/ᾱ_t) noise-to-signal ratio.
The denoiser always answers with x̂₀ ("sample" prediction); ε̂ and v̂ follow from x̂₀ and x_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from clinfuse.errors import ConfigError

SAMPLERS: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Those that every one of these schedulers knows."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The forward process and the reverse step.

    Attributes:
        train_timesteps: T, number of noise levels, 10 to 4000.
        beta_schedule: diffusers' name, one of `BETA_SCHEDULES`; "squaredcos_cap_v2" is the cosine schedule (Nichol,
            Dhariwal 2021).
        sampler: "ddim", "ddpm" or "dpmsolver++", the formula of g_θ in Eq. 1.
    """

    train_timesteps: int = 1000
    beta_schedule: str = "squaredcos_cap_v2"
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError("unknown sampler", expected=f"one of {sorted(SAMPLERS)}", found=self.sampler)
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ConfigError(
                "unknown beta_schedule", expected=f"one of {BETA_SCHEDULES}", found=str(self.beta_schedule)
            )
        if not 10 <= self.train_timesteps <= 4000:
            raise ConfigError(
                "train_timesteps is out of range", expected="10 to 4000", found=str(self.train_timesteps)
            )


def make_scheduler(config: DiffusionConfig, steps: int) -> Any:
    """A diffusers scheduler set to that many reverse steps, the first one at the noisiest level T − 1.

    Raises:
        ConfigError: fewer than one step, or more than there are noise levels.
    """
    if not 1 <= steps <= config.train_timesteps:
        raise ConfigError(
            "steps out of range", expected=f"1 to {config.train_timesteps} reverse steps", found=str(steps)
        )
    options: dict[str, Any] = {
        "num_train_timesteps": config.train_timesteps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if config.sampler in ("ddim", "ddpm"):
        options["clip_sample"] = False
    else:
        options["final_sigmas_type"] = "zero"
    scheduler = SAMPLERS[config.sampler](**options)
    scheduler.set_timesteps(steps)
    return scheduler


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """ᾱ_t for t = 0 … T − 1, (T,) float32."""
    return DDPMScheduler(
        num_train_timesteps=config.train_timesteps, beta_schedule=config.beta_schedule
    ).alphas_cumprod.float()


def add_noise(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ·x₀ + √(1−ᾱ)·ε; alpha_bar (B,) broadcast over (B, C, *S)."""
    a = _expand(alpha_bar, x_0)
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise


def implied_noise(x_t: Tensor, x_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """ε̂ = (x_t − √ᾱ·x̂₀)/√(1−ᾱ)."""
    a = _expand(alpha_bar, x_t)
    return (x_t - a.sqrt() * x_0) / (1 - a).sqrt().clamp_min(1e-4)


def estimate_from(prediction: Tensor, x_t: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """x̂₀ from a network output of kind "epsilon", "v" or "x0" (Salimans and Ho 2022, Section 4)."""
    a = _expand(alpha_bar, x_t)
    if kind == "epsilon":
        return (x_t - (1 - a).sqrt() * prediction) / a.sqrt().clamp_min(1e-2)
    if kind == "v":
        return a.sqrt() * x_t - (1 - a).sqrt() * prediction
    return prediction


def noise_ratio(alpha_bar: Tensor) -> Tensor:
    """σ_t = √((1−ᾱ_t)/ᾱ_t), same shape."""
    return ((1 - alpha_bar) / alpha_bar.clamp_min(1e-8)).sqrt()


def noise_like(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Standard normal (B, *shape[1:]) with one generator per sample, so that a case never sees its neighbours."""
    return torch.stack([torch.randn(shape[1:], generator=g, device=g.device) for g in generators])


def _expand(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like)

"""The conditional denoiser ε_θ(x_t, t | c), anchored in its two sources so that it cannot invent anatomy.

Legend: B batch, n subbands (2^d per Haar level), *Z spatial axes of the Haar domain. Images in [0, 1] enter the Haar
domain as haar(2·I − 1). The network is MONAI's DiffusionModelUNet; ours is what surrounds it:

    anchor A = P + max(w, 0) ⊙ (C − P) + max(−w, 0) ⊙ (M − P),   a = haar(2·A − 1 + ρ·tanh(r))
    x̂₀ = (σ_t²·a + s²·x_t/√ᾱ_t) / (σ_t² + s²)             posterior mean of x₀ given N(a, s²) and x_t

P is the fusion prior of the images as they are given (misregistered, perhaps), made for the preset; the signed gate
w = tanh(·) moves from it towards CT or MRI, and r is a small bounded residual. Gate and residual are maps of the full
image (the network's subbands transformed back) and smooth over a voxel, so that they draw neither edges nor the
transform's own blocks. An untrained network answers with the prior itself, which has no seam at ROI borders; it
learns what to change, not how to begin.
M is the MRI with the CT's findings in brain painted in (see clinfuse.method.prior), so that blood stays visible.
With much noise the estimate is the anchor; with little it trusts x_t too: at the default s = 0.01 by at most 0.4 % in
10 reverse steps and 5 % in 50. So what guidance changes in x_t lasts little, but for that of the last step (see
clinfuse.method.guidance); a larger s keeps more of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from clinfuse.errors import ConfigError
from clinfuse.method.diffusion import DiffusionConfig, alphas_cumprod, estimate_from, noise_ratio
from clinfuse.method.filters import gaussian_blur
from clinfuse.method.haar import haar, inverse_haar, inverse_haar_variance
from clinfuse.method.inputs import Inputs
from clinfuse.method.prior import FINDING_GREY, Sources, compose, look
from clinfuse.presets import VECTOR_SIZE

LOG_VARIANCE_RANGE = (-10.0, 2.0)
SMOOTH_VOXELS = 0.8


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Size and form of the denoiser.

    Attributes:
        spatial_dims: 2 (axial slices) or 3 (volumes).
        levels: Haar levels, 1 or 2.
        channels: U-Net channels per resolution, multiples of `groups`.
        groups: groups of the group normalisation.
        encoder_channels: channels of each light encoder φ; 0 leaves both out, and the U-Net sees the images alone.
        head: "anchored", or "epsilon" | "v" | "x0" for a free prediction of that kind (ablation).
        residual_scale: ρ, bound of the residual on the scale of 2·I − 1, 0 to 1.
        anchor_std: s, trust in x_t against the anchor, in Haar units, 0 to 1; 0 ignores x_t.
        finding_grey: in which CT findings in brain are painted into the MRI, in the target as in what the network
            sees, 0 to 1; 0 paints none (ablation). Of SPECT and PET none are painted.
    """

    spatial_dims: int = 2
    levels: int = 1
    channels: tuple[int, ...] = (32, 64, 96)
    groups: int = 8
    encoder_channels: int = 8
    head: str = "anchored"
    residual_scale: float = 0.3
    anchor_std: float = 0.01
    finding_grey: float = FINDING_GREY

    def __post_init__(self) -> None:
        checks = {
            "spatial_dims": self.spatial_dims in (2, 3),
            "levels": self.levels in (1, 2),
            "head": self.head in ("anchored", "epsilon", "v", "x0"),
            "channels": all(c % self.groups == 0 for c in self.channels),
            "encoder_channels": self.encoder_channels >= 0,
            "residual_scale": 0 <= self.residual_scale <= 1,
            "anchor_std": 0 <= self.anchor_std <= 1,
            "finding_grey": 0 <= self.finding_grey <= 1,
        }
        for name, ok in checks.items():
            if not ok:
                raise ConfigError(f"denoiser: {name} is not possible", found=f"{getattr(self, name)!r}")

    @property
    def bands(self) -> int:
        """Subbands n of one image."""
        return int(2 ** (self.spatial_dims * self.levels))

    @property
    def multiple(self) -> int:
        """Every image axis must be divisible by this: Haar levels and U-Net down-samplings."""
        return int(2 ** (self.levels + len(self.channels) - 1))


class Seen(NamedTuple):
    """The part of c that depends on neither x_t nor the preset, so that a changed preset need not see again.

    sources (B, ·, *S); images: φ(I_M), φ(I_C) and both images, masks, in the Haar domain (B, ·, *Z).
    """

    sources: Sources
    images: tuple[Tensor, ...]
    masks: Tensor


class Encoded(NamedTuple):
    """c = {φ(I_M), φ(I_C), M}, computed once per image.

    features and z_prior (B, ·, *Z); to_anatomy = 2(M − P) and to_companion = 2(C − P), (B, 1, *S); preset vector.
    """

    features: Tensor
    z_prior: Tensor
    to_anatomy: Tensor
    to_companion: Tensor
    vector: Tensor


class Estimate(NamedTuple):
    """Answer of one call: x̂₀, log variance of its error, residual ρ·tanh(r), all (B, n, *Z); gate w (B, 1, *S)."""

    x_0: Tensor
    log_variance: Tensor
    gate: Tensor
    residual: Tensor


def to_latent(image: Tensor, levels: int) -> Tensor:
    """(B, 1, *S) in [0, 1] → Haar domain (B, n, *Z) of 2·I − 1."""
    return haar(2 * image - 1, levels)


def to_image(latent: Tensor, levels: int) -> Tensor:
    """Inverse of `to_latent`; values may leave [0, 1] slightly."""
    return (inverse_haar(latent, levels) + 1) / 2


def to_image_variance(log_variance: Tensor, levels: int) -> Tensor:
    """Voxel variance in image units² from subband log variances, (B, n, *Z) → (B, 1, *S), smooth over a block."""
    return gaussian_blur(
        inverse_haar_variance(log_variance.exp(), levels) / 4, SMOOTH_VOXELS * 2 ** (levels - 1)
    )


def _encoder(dims: int, inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(conv(inputs, outputs, 3, padding=1), nn.SiLU(), conv(outputs, outputs, 3, padding=1))


class Denoiser(nn.Module):
    """ε_θ(x_t, t | c) of Section 3.1, answering with x̂₀ and the log variance of its error."""

    alpha_bar: Tensor

    def __init__(self, config: DenoiserConfig, diffusion: DiffusionConfig) -> None:
        super().__init__()
        self.config, self.diffusion = config, diffusion
        dims, bands, wide = config.spatial_dims, config.bands, config.encoder_channels
        if wide:
            self.encode_anatomy = _encoder(dims, bands, wide)
            self.encode_companion = _encoder(dims, bands, wide)
        self.unet = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=bands * 4 + wide * 2 + bands * 3,
            out_channels=bands * 3,
            num_res_blocks=1,
            channels=config.channels,
            attention_levels=[False] * len(config.channels),
            norm_num_groups=config.groups,
            num_head_channels=config.channels[-1],
            num_class_embeds=1,
        )
        embedding = config.channels[0] * 4
        preset = (nn.Linear(VECTOR_SIZE, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.unet.add_module("class_embedding", nn.Sequential(*preset))
        self.register_buffer("alpha_bar", alphas_cumprod(diffusion), persistent=False)

    def look(self, inputs: Inputs) -> Sources:
        """The parts of the fusion prior, with findings painted as this model learned them."""
        return look(inputs, self.config.finding_grey)

    def see(self, inputs: Inputs) -> Seen:
        """What the member sees of the images, the preset aside."""
        levels, sources = self.config.levels, self.look(inputs)
        z_m, z_c = to_latent(sources.painted, levels), to_latent(sources.companion, levels)
        images = [z_m, z_c]
        if self.config.encoder_channels:
            images = [self.encode_anatomy(z_m), self.encode_companion(z_c), *images]
        return Seen(sources, tuple(images), haar(inputs.masks, levels))

    def condition(self, seen: Seen, vector: Tensor) -> Encoded:
        """c for preset vectors (B, 6)."""
        sources, prior = seen.sources, compose(seen.sources, vector)
        z_p = to_latent(prior, self.config.levels)
        features = torch.cat([*seen.images, z_p, seen.masks], dim=1)
        return Encoded(features, z_p, 2 * (sources.painted - prior), 2 * (sources.companion - prior), vector)

    def encode(self, inputs: Inputs) -> Encoded:
        """The part of c that does not depend on x_t; compute it once per image."""
        return self.condition(self.see(inputs), inputs.vector)

    def forward(self, x_t: Tensor, timesteps: Tensor, inputs: Inputs) -> Estimate:
        """Training entry: x_t (B, n, *Z), timesteps (B,) int64, inputs as images."""
        return self.denoise(x_t, timesteps, self.encode(inputs))

    def denoise(self, x_t: Tensor, timesteps: Tensor, c: Encoded) -> Estimate:
        """x̂₀ of x_t (B, n, *Z) at timesteps (B,) under the encoded condition c (Algorithm 1, line 4)."""
        out = self.unet(torch.cat([x_t, c.features], dim=1), timesteps, class_labels=c.vector)
        gate, residual, log_variance = out.chunk(3, dim=1)
        log_variance = LOG_VARIANCE_RANGE[0] / 2 + log_variance
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        alpha_bar = self.alpha_bar[timesteps]
        if self.config.head != "anchored":
            x_0 = estimate_from(gate, x_t, alpha_bar, self.config.head)
            return Estimate(x_0, log_variance, torch.zeros_like(c.to_anatomy), x_0 - c.z_prior)
        gate, residual = torch.tanh(self._full_map(gate)), torch.tanh(self._full_map(residual))
        towards = gate.clamp_min(0) * c.to_companion - gate.clamp_max(0) * c.to_anatomy
        z_residual = haar(self.config.residual_scale * residual, self.config.levels)
        anchor = c.z_prior + haar(towards, self.config.levels) + z_residual
        return Estimate(self._posterior_mean(anchor, x_t, alpha_bar), log_variance, gate, z_residual)

    def _full_map(self, bands: Tensor) -> Tensor:
        """A smooth map of the full image from the network's subbands, (B, n, *Z) → (B, 1, *S)."""
        return gaussian_blur(
            inverse_haar(bands, self.config.levels), SMOOTH_VOXELS * 2 ** (self.config.levels - 1)
        )

    def _posterior_mean(self, anchor: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        a = alpha_bar.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t)
        square = self.config.anchor_std**2
        trust = square / (noise_ratio(a) ** 2 + square)
        return (1 - trust) * anchor + trust * x_t / a.sqrt().clamp_min(1e-4)


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Grow the spatial axes of (B, C, *S) to multiples by repeating borders; also the slices that undo it."""
    space = image.shape[2:]
    padding: list[int] = []
    for n in reversed(space):
        missing = -n % multiple
        padding += [missing // 2, missing - missing // 2]
    undo = tuple(slice((-n % multiple) // 2, (-n % multiple) // 2 + n) for n in space)
    if not any(padding):
        return image, (slice(None), slice(None), *undo)
    return F.pad(image, padding, mode="replicate"), (slice(None), slice(None), *undo)

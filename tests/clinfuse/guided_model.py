"""A very small denoiser and lesion head, a pair, and what guides one by the other."""

import torch
from torch import Tensor

from clinfuse.method.denoiser import Denoiser, DenoiserConfig
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.guidance import GuidanceConfig, Guide
from clinfuse.method.inputs import Inputs
from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig
from clinfuse.method.roi_loss import (
    RoiReference,
    RoiWeights,
    composite,
    roi_reference,
    roi_terms,
)
from clinfuse.method.sampler import Sampled, sample
from clinfuse.presets import Preset

PRESET = Preset(name="test", eta=0.02, eta_u=0.0, kappa=4.0, steps=4)
STEPS = 4


def denoiser(**changes: object) -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(**{"channels": (8, 16), "encoder_channels": 2, "anchor_std": 0.2, **changes})  # type: ignore[arg-type]
    model = Denoiser(config, DiffusionConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def made_inputs(dims: int = 2, batch: int = 2, size: int = 16) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand((2, batch, 1, *[size] * dims), generator=generator)
    masks = torch.zeros(batch, 3, *[size] * dims)
    masks[:, 0, ..., 2:8] = 1
    masks[:, 1, ..., 10:14] = 1
    masks[:, 2, ..., 4:6, 4:6] = 1
    vector = torch.tensor([PRESET.vector]).expand(batch, -1)
    return Inputs(images[0], images[1], masks, vector, torch.ones(batch))


def lesion_head(dims: int = 2) -> LesionHead:
    torch.manual_seed(1)
    return LesionHead(LesionHeadConfig(spatial_dims=dims, channels=(4, 8))).freeze()


def reference_of(inputs: Inputs, tau_mm: float = 2.0, border: str = "hd95") -> RoiReference:
    spacing = (1.0, 1.5, 2.0)[-(inputs.anatomy.ndim - 2) :]
    return roi_reference(inputs.anatomy, inputs.companion, inputs.masks, spacing, tau_mm, border)


def guide_for(inputs: Inputs, preset: Preset = PRESET, **config: object) -> Guide:
    return Guide(
        reference=reference_of(inputs),
        lesion_head=lesion_head(inputs.anatomy.ndim - 2),
        preset=preset,
        head_mask=torch.ones_like(inputs.anatomy),
        config=GuidanceConfig(**config),  # type: ignore[arg-type]
    )


def run(
    model: Denoiser,
    inputs: Inputs,
    guide: Guide | None,
    steps: int = STEPS,
    seed: int = 0,
    sampler: str = "ddim",
) -> Sampled:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(inputs.anatomy))]
    diffusion = DiffusionConfig(sampler=sampler)
    return sample([model], inputs, diffusion=diffusion, steps=steps, generators=generators, guide=guide)


def loss_of(fused: Tensor, guide: Guide) -> float:
    terms = roi_terms(fused, guide.reference, guide.lesion_head)
    return float(composite(terms, RoiWeights.of(guide.preset)).mean())

"""Cases, networks and single reverse steps that tests/benchmarks/method.py measures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from clinfuse_prep.cohort import make_cohort
from clinfuse_prep.prepare import prepare_pair
from method_device import Call
from scipy.ndimage import zoom

from clinfuse.case import Case
from clinfuse.method.denoiser import Encoded, to_image
from clinfuse.method.guidance import GuidanceConfig, Guide, guided_step
from clinfuse.method.precision import at_precision
from clinfuse.method.roi_loss import RoiWeights, composite, roi_terms
from clinfuse.method.sampler import sample_encoded
from clinfuse.method.uncertainty import mean_uncertainty, predicted_std
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import build_denoiser, build_lesion_head, recipe

SAMPLER_STEPS = 10
PRESET = load_presets()["balanced"]


def slab(folder: Path, slices: int) -> Case:
    """Axial slices around a simulated lesion, in plane at 1 mm."""
    path = make_cohort(folder, patients=1, seed=7)[0]
    masks = {roi: path / f"{roi}.nii.gz" for roi in ("brain", "bone", "lesion")}
    case = prepare_pair(path / "mr.nii.gz", path / "ct_aligned.nii.gz", **masks, case_id="bench")
    middle = int(np.median(np.flatnonzero(case.lesion.any(axis=(1, 2)))))
    part = case.slices(middle - slices // 2, middle - slices // 2 + slices)
    images = {name: zoom(getattr(part, name), (1, 2, 2), order=1) for name in ("anatomy", "companion")}
    rois = {name: zoom(getattr(part, name), (1, 2, 2), order=0) for name in masks}
    return replace(part, **images, **rois, affine=part.affine @ np.diag([0.5, 0.5, 1, 1]))


def volume(side: int) -> Case:
    """Noise, with a shell, a core and a lesion as masks."""
    images = np.random.default_rng(0).random((2, side, side, side), dtype=np.float32)
    distance = np.linalg.norm(np.indices((side,) * 3) - side / 2, axis=0) / side
    rois = {"brain": distance < 0.35, "bone": (distance > 0.38) & (distance < 0.45), "lesion": distance < 0.1}
    masks = {name: mask.astype(np.uint8) for name, mask in rois.items()}
    return Case(case_id="volume", anatomy=images[0], companion=images[1], affine=np.eye(4), **masks)


@dataclass
class Step:
    """One reverse step of a case by a pipeline's first member: the network alone, the denoiser, with guidance."""

    pipeline: FusionPipeline
    case: Case
    encoded: Encoded = field(init=False)

    def __post_init__(self) -> None:
        part = next(iter(self.pipeline.encode(self.case, 0).parts))
        count, device = len(part.inputs.anatomy), self.pipeline.device
        self.denoiser, self.inputs = self.pipeline.network(0), part.inputs
        with torch.no_grad():
            self.encoded = self.denoiser.condition(
                part.seen, torch.tensor([PRESET.vector] * count, device=device)
            )
        self.x_t = torch.randn(self.encoded.z_prior.shape, device=device)
        self.timesteps = torch.full((count,), self.pipeline.diffusion.train_timesteps // 2, device=device)

    @torch.no_grad()
    def network(self) -> None:
        """The U-Net's answer."""
        seen = torch.cat([self.x_t, self.encoded.features], dim=1)
        self.denoiser.unet(seen, self.timesteps, class_labels=self.encoded.vector)

    @torch.no_grad()
    def forward(self) -> None:
        """ε_θ: the U-Net and what makes an estimate of its answer."""
        self.denoiser.denoise(self.x_t, self.timesteps, self.encoded)

    def sampler(self) -> None:
        """All reverse steps, unguided."""
        device = self.pipeline.device
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(len(self.x_t))]
        options = {"diffusion": self.pipeline.diffusion, "steps": SAMPLER_STEPS, "generators": generators}
        sample_encoded([self.denoiser], [self.encoded], **options)

    def guide(self, gradient: str) -> Guide:
        """With the pipeline's lesion head."""
        spacing, config = self.case.spacing[-self.pipeline.spatial_dims :], GuidanceConfig(gradient=gradient)
        assert self.pipeline.lesion_head is not None
        head = at_precision(self.pipeline.lesion_head, self.pipeline.precision)
        return Guide.of(self.inputs, spacing, head, PRESET, config)

    def guided(self, gradient: str) -> Call:
        """A guided step's evaluation."""
        guide = self.guide(gradient)
        return lambda: guided_step([self.denoiser], self.x_t, self.timesteps, [self.encoded], guide)

    def backward(self, *, at_once: bool) -> Call:
        """Forward and backward of ε_θ and of the losses L_ROI and U, and nothing else.

        Args:
            at_once: one gradient, of their sum; else one of each, as Eq. 1 weighs them differently at every voxel.
        """
        guide, levels = self.guide("exact"), self.denoiser.config.levels

        def run() -> None:
            x_t = self.x_t.detach().requires_grad_()
            estimate = self.denoiser.denoise(x_t, self.timesteps, self.encoded)
            terms = roi_terms(to_image(estimate.x_0, levels), guide.reference, guide.lesion_head)
            loss = composite(terms, RoiWeights.of(PRESET)).sum()
            doubt = mean_uncertainty(predicted_std([estimate], levels), guide.head_mask).sum()
            losses = [loss + doubt] if at_once else [loss, doubt]
            for one in losses:
                torch.autograd.grad(one, x_t, retain_graph=one is not losses[-1])

        return run


def pipeline_3d(device: torch.device) -> FusionPipeline:
    """Untrained networks for volumes: those of the recipe gpu-3d on a GPU, of the released model's size on a CPU."""
    small = {"denoiser.spatial_dims": 3, "lesion_head.spatial_dims": 3, "crop": (32, 32, 32)}
    config = recipe("gpu-3d") if device.type == "cuda" else recipe("cpu-small", **small)
    return FusionPipeline(
        members=[build_denoiser(config).to(device)],
        lesion_head=build_lesion_head(config).to(device),
        diffusion=config.diffusion,
        kind="student",
    )

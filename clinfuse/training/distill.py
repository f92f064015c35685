"""Targets for distillation: what the guided teacher makes of a training batch (Section 3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clinfuse.method.guidance import GuidanceConfig, Guide
from clinfuse.method.refine import refined_prior
from clinfuse.method.sampler import sample
from clinfuse.presets import Preset
from clinfuse.training.config import TrainConfig
from clinfuse.training.losses import Batch, draw_vectors, inputs_of
from clinfuse.training.spacing import by_spacing

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline


def guided_target(
    teacher: FusionPipeline, batch: Batch, preset: Preset, config: TrainConfig, *, seed: int
) -> Batch:
    """The batch with the guided teacher's result for it.

    The teacher sees the aligned companion, so that the student, who sees the misregistered one, learns to bear it.
    Its F is refined as the teacher's own targets were (`refine_steps`).

    Args:
        batch: see clinfuse.training.losses; crops (B, 1, *crop).
        preset: gives η, η_u, κ and the weights; the same for the whole batch.
        config: diffusion, `teacher_steps` and `border`.
        seed: of the starting noise.

    Returns:
        The same tensors, on the CPU, with "teacher" (B, 1, *crop) in [0, 1] and "vector" (B, 6).

    Reference: proposal, Section 3.5 and Algorithm 1.
    """
    numbered = {**batch, "number": torch.arange(len(batch["anatomy"]))}
    return {**batch, **by_spacing(numbered, lambda part: _target(teacher, part, preset, config, seed))}


def _target(teacher: FusionPipeline, batch: Batch, preset: Preset, config: TrainConfig, seed: int) -> Batch:
    """Entries "teacher" and "vector" for samples of one spacing; noise is by a sample's "number" in the batch."""
    here = {name: value.to(teacher.device) for name, value in batch.items()}
    vector = torch.tensor([preset.vector], device=teacher.device).expand(len(here["anatomy"]), -1)
    inputs = inputs_of(here, here["aligned"], vector)
    spacing = tuple(batch["spacing"][0].tolist())
    seeds = [seed + number for number in batch["number"].tolist()]
    done = sample(
        [teacher.members[0]],
        inputs,
        diffusion=config.diffusion,
        steps=config.teacher_steps,
        generators=[torch.Generator(teacher.device).manual_seed(one) for one in seeds],
        guide=Guide.of(inputs, spacing, teacher.lesion_head, preset, GuidanceConfig(border=config.border)),
    )
    target = refined_prior(inputs, config.refine_steps, done.fused, config.denoiser.finding_grey)
    return {"teacher": target.cpu(), "vector": vector.cpu().contiguous()}


def between(preset: Preset, seed: int) -> Preset:
    """The preset with all weights drawn uniformly; so that a student also serves points between presets."""
    names = ("alpha", "beta", "gamma", "lambda_dice", "lambda_nsd", "lambda_hd")
    drawn = (3 * draw_vectors(1, torch.Generator().manual_seed(seed))[0]).tolist()
    return preset.changed(**{name: float(v) for name, v in zip(names, drawn, strict=True)})

"""Targets for distillation: what the guided teacher makes of training crops, drawn once per worker (Section 3.5)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from clinfuse.method.denoiser import Denoiser, Inputs
from clinfuse.method.guidance import GuidanceConfig, Guide
from clinfuse.method.lesion_head import LesionHead
from clinfuse.method.roi_loss import roi_reference
from clinfuse.method.sampler import sample
from clinfuse.presets import Preset
from clinfuse.training.config import TrainConfig
from clinfuse.training.loop import Batches
from clinfuse.training.losses import Batch, draw_vectors, jittered_companion, masks


def teacher_targets(
    teacher: Denoiser,
    lesion_head: LesionHead | None,
    batches: Batches,
    config: TrainConfig,
    *,
    presets: list[Preset],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Batch]:
    """Run the guided teacher on `config.distill_batches` training batches.

    Each batch is steered by one preset: the given ones in turn, every second batch with weights drawn on the simplices,
    so that the student also serves points between presets.

    Returns:
        The batches with "companion" as the teacher saw it, "vector" (B, 6) and "teacher" (B, 1, *S) added.
    """
    targets = []
    for index in range(config.distill_batches):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        batch = dict(batches(index))
        preset = presets[index % len(presets)]
        if index % 2:
            preset = between(preset, generator)
        batch["companion"] = jittered_companion(batch, config, generator)
        batch["vector"] = torch.tensor([preset.vector]).expand(len(batch["anatomy"]), -1).to(batch["anatomy"])
        batch["teacher"] = _guided(teacher, lesion_head, batch, preset, config, generator)
        targets.append(batch)
        if progress is not None:
            progress(index + 1, config.distill_batches)
    return targets


def between(preset: Preset, generator: torch.Generator) -> Preset:
    """The preset with all weights drawn uniformly; strengths and tolerance stay."""
    names = ("alpha", "beta", "gamma", "lambda_dice", "lambda_nsd", "lambda_hd")
    drawn = (3 * draw_vectors(1, generator)[0]).tolist()
    return preset.changed(**{name: float(v) for name, v in zip(names, drawn, strict=True)})


def _guided(
    teacher: Denoiser,
    lesion_head: LesionHead | None,
    batch: Batch,
    preset: Preset,
    config: TrainConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    inputs = Inputs(batch["anatomy"], batch["companion"], masks(batch), batch["vector"])
    spacing = tuple(batch["spacing"][0].tolist())
    reference = roi_reference(batch["anatomy"], batch["aligned"], masks(batch), spacing, preset.tau_mm)
    head = ((batch["anatomy"] > 0.03) | (batch["companion"] > 0.03)).float()
    guide = Guide(
        reference=reference, lesion_head=lesion_head, preset=preset, head_mask=head, config=GuidanceConfig()
    )
    seeds = torch.randint(2**31, (len(batch["anatomy"]),), generator=generator).tolist()
    generators = [torch.Generator(batch["anatomy"].device).manual_seed(s) for s in seeds]
    done = sample(
        [teacher],
        inputs,
        diffusion=config.diffusion,
        steps=config.teacher_steps,
        generators=generators,
        guide=guide,
    )
    return done.fused.detach()

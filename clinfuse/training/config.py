"""Training configuration: one frozen dataclass, four recipes that differ in size only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import DenoiserConfig
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.jitter import JitterConfig
from clinfuse.method.lesion_head import LesionHeadConfig
from clinfuse.method.roi_loss import require_border
from clinfuse.presets import RANGES as PRESET_RANGES
from clinfuse.ranges import require_ranges
from clinfuse.training.effort import Effort

STUDENT_STEPS = (1, 2, 4)
# what each training option may be: whole numbers, then any; far limits only keep out what is surely a slip
COUNTS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31),
    "batch_size": (1, 10**5),
    **dict.fromkeys(("lesion_steps", "denoiser_steps", "member_steps", "distill_iterations"), (1, 10**8)),
    "distill_batches": (1, 10**7),
    "teacher_steps": (1, 1000),
    "refine_steps": (0, 1000),
    "validations": (0, 10**6),
}
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("learning_rate", "lesion_learning_rate"), (1e-12, 1e30)),
    **dict.fromkeys(("roi_weight", "seam_weight", "variance_weight", "residual_weight"), (0, 1e6)),
    "score_weight": (0, 1e6),
    "jitter_share": (0, 1),
    "contrast_share": (0, 1),
    "tracer_share": (0, 1),
    "tau_mm": PRESET_RANGES["tau_mm"],
}
LEFT_BY_ALIGNMENT = JitterConfig(translation_mm=0.7, rotation_deg=0.7, elastic_mm=0.3)
"""Misregistration to learn with: what is too small for clinfuse.alignment, which undoes the rest before sampling."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        recipe: name it started from.
        seed: of weights, data order and noise.
        batch_size: crops per worker and step.
        crop: voxels per axis of a training crop, one entry per spatial dimension; multiples of the denoiser's.
        slab_crop: a second crop of volumes, wide and flat, which shows whole slices; same rules.
        slab_share: share of the steps that train on it, 0 to 1; 0 in 2D.
        lesion_steps, denoiser_steps, member_steps: optimiser steps of lesion head, denoiser, each further member.
        learning_rate, lesion_learning_rate: peak of a cosine decay with warm-up (AdamW) of denoisers and lesion head.
        roi_weight: λ_roi of Eq. 3.
        seam_weight: of the seam penalty beside L_ROI.
        variance_weight: weight of the log-variance likelihood (aleatoric uncertainty).
        residual_weight: penalty on what is in neither source.
        refine_steps: descent steps from the fusion prior to the denoiser's target (clinfuse.method.refine); 0 learns
            the fusion prior itself.
        jitter_share: share of crops whose companion is warped while the target stays aligned, 0 to 1.
        jitter: largest amplitudes of those warps.
        contrast_share: share of crops seen in another CT window or MR weighting, 0 to 1.
        tracer_share: share of the crops with a CT that are seen with a simulated SPECT or PET image instead, 0 to 1.
        tau_mm: border tolerance of the lesion terms while training, mm.
        border: what L_HD95 of Eq. 2 is while training, "hd95" or "surface" (the generalized surface loss).
        student_steps: sampler steps of the student, 1, 2 or 4.
        distill_iterations: optimiser steps of the student.
        distill_batches: batches of guided-teacher targets per worker.
        teacher_steps: guided reverse steps per target.
        score_weight: weight of the score-distillation refinement; 0 leaves it out.
        validations: how often in a phase a checkpoint is judged on validation cases, beside the training.
        effort: precision, accumulation, averaging and what else saves time or memory.
    """

    recipe: str = "cpu-debug"
    seed: int = 0
    batch_size: int = 4
    crop: tuple[int, ...] = (48, 48)
    slab_crop: tuple[int, ...] = ()
    slab_share: float = 0.0
    lesion_steps: int = 30
    denoiser_steps: int = 40
    member_steps: int = 20
    learning_rate: float = 2e-3
    lesion_learning_rate: float = 6e-3
    roi_weight: float = 0.05
    seam_weight: float = 10.0
    variance_weight: float = 0.01
    residual_weight: float = 0.02
    refine_steps: int = 24
    jitter_share: float = 1.0
    contrast_share: float = 0.3
    tracer_share: float = 0.2
    tau_mm: float = 2.0
    border: str = "hd95"
    student_steps: int = 4
    distill_iterations: int = 20
    distill_batches: int = 2
    teacher_steps: int = 4
    score_weight: float = 0.1
    validations: int = 0
    effort: Effort = field(default_factory=Effort)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    lesion_head: LesionHeadConfig = field(default_factory=LesionHeadConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    jitter: JitterConfig = field(default_factory=lambda: LEFT_BY_ALIGNMENT)

    def __post_init__(self) -> None:
        require_ranges("training", self, COUNTS, whole=True)
        require_ranges("training", self, RANGES)
        require_border(self.border)
        dims, multiple = self.denoiser.spatial_dims, self.denoiser.multiple
        for name in ("crop", "slab_crop") if self.slab_share else ("crop",):
            crop = getattr(self, name)
            if not isinstance(crop, tuple) or len(crop) != dims or any(n % multiple or n < 16 for n in crop):
                raise ConfigError(
                    f"{name} does not fit the denoiser",
                    expected=f"{dims} multiples of {multiple}, 16 or more",
                    found=str(crop),
                )
        if not 0 <= self.slab_share <= (1 if dims == 3 else 0):
            raise ConfigError("slab_share", expected="0 to 1, and 0 in 2D", found=str(self.slab_share))
        if self.batch_size % self.effort.accumulate:
            raise ConfigError(
                "batch_size is not a multiple of effort.accumulate",
                expected=f"a multiple of {self.effort.accumulate}",
                found=str(self.batch_size),
            )
        if self.lesion_head.spatial_dims != dims:
            raise ConfigError("lesion head and denoiser differ in dimensions", expected=str(dims))
        if self.student_steps not in STUDENT_STEPS:
            raise ConfigError("student_steps", expected="1, 2 or 4", found=str(self.student_steps))

    @property
    def spatial_dims(self) -> int:
        """2 (axial slices) or 3 (volumes)."""
        return self.denoiser.spatial_dims

    def crop_at(self, step: int) -> tuple[int, ...]:
        """The crop that a step trains on, on every worker: `slab_crop` for `slab_share` of the steps."""
        if not self.slab_share:
            return self.crop
        drawn = np.random.default_rng([self.seed, 3571, step]).random()
        return self.slab_crop if drawn < self.slab_share else self.crop

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, read back by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration saved with a run or checkpoint.

        Raises:
            ConfigError: unknown keys or impossible values.
        """
        return _build(cls, values)

    def changed(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Some values changed; nested ones by dotted names, e.g. {"denoiser.anchor_std": 0.1}."""
        values = self.to_dict()
        for key, value in changes.items():
            *path, leaf = key.split(".")
            place: Any = values
            for part in path:
                place = place.get(part) if isinstance(place, dict) else None
            if not isinstance(place, dict) or leaf not in place:
                raise ConfigError("no such training option", expected=", ".join(sorted(values)), found=key)
            place[leaf] = value
        return self.from_dict(values)


def _build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in fields(cls)}
    if not isinstance(values, Mapping):
        raise ConfigError(
            "training options of one kind", expected=", ".join(sorted(known)), found=repr(values)
        )
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            "unknown training option", expected=", ".join(sorted(known)), found=", ".join(unknown)
        )
    parts = {
        "denoiser": DenoiserConfig,
        "lesion_head": LesionHeadConfig,
        "diffusion": DiffusionConfig,
        "jitter": JitterConfig,
        "effort": Effort,
    }
    made = {}
    for name, value in values.items():
        if name in parts:
            made[name] = _build(parts[name], value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def cpu_debug() -> TrainConfig:
    """Seconds on two cores, through the same path as the real runs."""
    return TrainConfig(
        recipe="cpu-debug", refine_steps=4, denoiser=DenoiserConfig(channels=(16, 32), encoder_channels=4)
    )


def cpu_small() -> TrainConfig:
    """Minutes on two cores, axial slices."""
    return TrainConfig(
        recipe="cpu-small",
        batch_size=8,
        crop=(64, 64),
        lesion_steps=240,
        denoiser_steps=140,
        member_steps=60,
        distill_iterations=40,
        distill_batches=6,
        teacher_steps=5,
        denoiser=DenoiserConfig(channels=(16, 32, 48)),
    )


def gpu_2d() -> TrainConfig:
    """Axial slices at full size on one or more GPUs, a night."""
    return replace(
        cpu_small(),
        recipe="gpu-2d",
        batch_size=32,
        crop=(192, 192),
        lesion_steps=10_000,
        denoiser_steps=60_000,
        member_steps=30_000,
        learning_rate=3e-4,
        lesion_learning_rate=1e-3,
        distill_iterations=20_000,
        distill_batches=500,
        teacher_steps=50,
        validations=20,
        effort=Effort(precision="bfloat16", average=0.999, channels_last=True),
        denoiser=DenoiserConfig(channels=(64, 128, 192), encoder_channels=16),
        lesion_head=LesionHeadConfig(channels=(32, 64, 128, 256)),
    )


def gpu_3d() -> TrainConfig:
    """Volumes on one or more large GPUs."""
    return replace(
        gpu_2d(),
        recipe="gpu-3d",
        batch_size=2,
        crop=(96, 96, 96),
        slab_crop=(32, 160, 160),
        slab_share=0.2,
        effort=Effort(precision="bfloat16", average=0.999, checkpointing=True),
        denoiser=DenoiserConfig(spatial_dims=3, channels=(48, 96, 144), encoder_channels=16),
        lesion_head=LesionHeadConfig(spatial_dims=3, channels=(16, 32, 64, 128)),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "cpu-debug": cpu_debug,
    "cpu-small": cpu_small,
    "gpu-2d": gpu_2d,
    "gpu-3d": gpu_3d,
}


def recipe(name: str, **changes: Any) -> TrainConfig:
    """A named recipe with some values changed.

    Raises:
        ConfigError: no such recipe or option.
    """
    if name not in RECIPES:
        raise ConfigError("no such recipe", expected=", ".join(RECIPES), found=repr(name))
    return RECIPES[name]().changed(changes)

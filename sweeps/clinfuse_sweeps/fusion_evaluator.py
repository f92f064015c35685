"""What a worker does in a real sweep: fuse its validation slabs with the suggested preset and measure the ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from clinfuse_platform.evaluate_slices import shown_slice
from clinfuse_platform.storage import write_atomic
from clinfuse_platform.variants import slab

from clinfuse.case import Case, FloatArray
from clinfuse.errors import ConfigError, InputError
from clinfuse_sweeps.goals import GOALS, Goal, Limit
from clinfuse_sweeps.pictures import SHOWN_CASES, cut_picture, strip
from clinfuse_sweeps.space import SCHEDULES, Space
from clinfuse_sweeps.trainable import Suggestion, stream_seed

if TYPE_CHECKING:
    from clinfuse.method.jitter import JitterConfig
    from clinfuse.pipeline import FusionResult
    from clinfuse.presets import Preset

# warps smaller than this, in mm, are far below a voxel: not drawn
LEAST_JITTER_MM = 0.05
# a rigid rotation of 1° moves the cortex (about 80 mm from the centre) by 1.4 mm
DEGREES_PER_MM = 0.7


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """How a trial fuses.

    Attributes:
        model: model folder, by a path or URL that every worker can read.
        spaces: by preset name; the suggestion's values are set into the space's preset.
        steps: reverse steps of the sampler, or None for the model's own.
        members: members of an ensemble used, or None for all.
        jitters: warped draws averaged with the unwarped one when the trial's jitter amplitude is not 0.
        seed: of the fusion's noise, per case: all trials see the same noise, so that only the values differ.
        threads: torch threads of one worker.
        device: "cpu" or "cuda".
        pictures: folder for one small picture per trial, or None.
    """

    model: str
    spaces: Mapping[str, Space]
    steps: int | None = None
    members: int | None = None
    jitters: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    pictures: str | None = None


@dataclass(frozen=True)
class FusionRecipe:
    """Travels to the worker; cases travel through the object store, once."""

    settings: FusionSettings
    cases: Sequence[Case]

    def __call__(self) -> FusionEvaluator:
        """Load the model in the worker."""
        return FusionEvaluator(self.settings, self.cases)


class FusionEvaluator:
    """Holds model and slabs; scores one suggestion on one case."""

    def __init__(self, settings: FusionSettings, cases: Sequence[Case]) -> None:
        import torch
        from clinfuse_platform.runs import find_model

        from clinfuse.pipeline import FusionPipeline

        torch.set_num_threads(settings.threads)
        self.settings, self.slabs = (
            settings,
            deepcopy(list(cases)),
        )  # arrays from the object store are read-only
        self.pipeline = FusionPipeline.from_pretrained(find_model(settings.model), device=settings.device)
        self.shown: dict[int, FloatArray] = {}

    @property
    def cases(self) -> int:
        """Number of slabs."""
        return len(self.slabs)

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        """The objectives of `clinfuse.evaluation` and the calibration error, for the suggestion on one slab."""
        from clinfuse.evaluation.objectives import objectives

        seen, result = self.slabs[case], self.fuse(suggestion, case)
        if case < SHOWN_CASES:
            self.shown[case] = result.fused
        preset = self.settings.spaces[suggestion.preset].preset(suggestion.params)
        found = objectives(seen, result.fused, self.pipeline.lesion_head, preset)
        found["ece"] = calibration_error(seen, result, preset)
        return {name: float(value) for name, value in found.items()}

    def fuse(self, suggestion: Suggestion, case: int) -> FusionResult:
        """The fused slab with its uncertainty."""
        settings = self.settings
        jitter = jitter_of(suggestion.params)
        warped = settings.jitters > 0 and is_felt(jitter)
        if "schedule" in suggestion.params:
            name = SCHEDULES[round(suggestion.params["schedule"])]
            self.pipeline.diffusion = replace(self.pipeline.diffusion, sampler=name)
        return self.pipeline(
            self.slabs[case],
            settings.spaces[suggestion.preset].preset(suggestion.params),
            steps=round(suggestion.params["steps"]) if "steps" in suggestion.params else settings.steps,
            members=settings.members,
            seed=stream_seed(settings.seed, "case", case),
            jitters=settings.jitters if warped else 0,
            jitter=jitter,
        )

    def finish(self, suggestion: Suggestion) -> None:
        """Keep a picture of the trial's first cases, if pictures are wanted."""
        shown = [(self.slabs[i], fused) for i, fused in sorted(self.shown.items())]
        self.shown = {}
        if self.settings.pictures is None or not shown:
            return
        png = strip([cut_picture(case, fused, shown_slice(case)) for case, fused in shown])
        path = Path(self.settings.pictures) / f"{suggestion.preset}-{suggestion.number:04d}.png"
        write_atomic(path, png)


def calibration_error(case: Case, result: FusionResult, preset: Preset) -> float:
    """ECE of the uncertainty, in [0, 1], over the head: does it say how often |F − reference| exceeds 0.05?

    NaN where the head is empty. Without a calibration the uncertainty is no probability, and the number says so.
    """
    from clinfuse.evaluation.uncertain import TOLERANCE, error_and_regions
    from clinfuse.metrics.uncertainty import ece

    error, regions = error_and_regions(case, result.fused, preset)
    head = regions["head"]
    if not head.any():
        return float("nan")
    tolerance = float(result.info.get("error_tolerance", TOLERANCE))
    return ece(np.asarray(result.uncertainty, dtype=np.float64)[head], error[head] > tolerance)


def jitter_of(params: Mapping[str, float]) -> JitterConfig:
    """The jitter of a trial: turn (as felt at the cortex) and elastic warp follow the shift unless given themselves."""
    from clinfuse.method.jitter import JitterConfig

    amplitude = float(params.get("jitter_mm", 0.0))
    return JitterConfig(
        translation_mm=amplitude,
        rotation_deg=float(params.get("jitter_deg", DEGREES_PER_MM * amplitude)),
        elastic_mm=float(params.get("jitter_elastic_mm", amplitude / 2)),
    )


def is_felt(jitter: JitterConfig) -> bool:
    """Whether any part of the warp moves the cortex by more than LEAST_JITTER_MM."""
    parts = (jitter.translation_mm, jitter.rotation_deg / DEGREES_PER_MM, jitter.elastic_mm)
    return max(parts) >= LEAST_JITTER_MM


def check_cases(
    cases: Sequence[Case], goals: Sequence[Goal], limits: Sequence[Limit], *, lesion_head: bool = True
) -> None:
    """Refuse before any trial starts what no trial could measure.

    Args:
        cases: the slabs.
        goals, limits: objectives and constraints.
        lesion_head: whether the model has one (or will have: it is trained where training cases have lesions).

    Raises:
        InputError: no case at all.
        ConfigError: an objective or constraint whose ROI is empty in every slab, or that needs a lesion head.
    """
    if not cases:
        raise InputError(
            "there are no validation cases to sweep on",
            expected="cases of the split asked for",
            found="none",
            todo="give another --split, or prepare more patients",
        )
    for goal in (*goals, *(GOALS[limit.metric] for limit in limits)):
        if goal.roi and not any(np.any(getattr(case, goal.roi)) for case in cases):
            raise ConfigError(
                f"{goal.name} cannot be measured",
                expected=f"a {goal.roi} mask in at least one case",
                found=f"none in {len(cases)} slabs",
                todo="leave the objective or constraint out, or take more --slices",
            )
        if goal.roi == "lesion" and not lesion_head:
            raise ConfigError(
                f"{goal.name} cannot be measured",
                expected="a model with a lesion head, which finds the lesion in the fused image",
                found="a model without one: its training cases had no lesions",
                todo="leave the objective or constraint out, or train on cases with lesions",
            )


def load_slabs(data: str | Path, *, split: str, slices: int | None, limit: int | None = None) -> list[Case]:
    """The split's cases of a store in the order of their ids, each cut to the slab that `clinfuse evaluate` takes.

    Raises:
        ConfigError: slices below 1.
    """
    from clinfuse_prep.store import CaseStore

    if slices is not None and slices < 1:
        raise ConfigError("--slices is too small", expected="1 or more", found=str(slices))
    store = CaseStore(data)
    ids = sorted(store.case_ids(split=split))[:limit]
    return [slab(store.read(case_id), slices) for case_id in ids]

"""What a worker does in a real sweep: fuse its validation slabs with the suggested preset and measure the ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse_sweeps.goals import Goal, Limit
from clinfuse_sweeps.slabs import cut
from clinfuse_sweeps.space import Space
from clinfuse_sweeps.studies import stream_seed
from clinfuse_sweeps.trainable import Suggestion


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """How a trial fuses.

    Attributes:
        model: model folder, readable by every worker.
        spaces: by preset name; the suggestion's values are set into the space's preset.
        steps: reverse steps of the sampler, or None for the preset's own.
        members: members of an ensemble used, or None for all.
        seed: of the fusion's noise, per case: all trials see the same noise, so that only the values differ.
        threads: torch threads of one worker.
        device: "cpu" or "cuda".
        pictures: folder for one small picture per trial, or None.
    """

    model: str
    spaces: Mapping[str, Space]
    steps: int | None = None
    members: int | None = None
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
        from clinfuse.pipeline import FusionPipeline

        torch.set_num_threads(settings.threads)
        self.settings, self.slabs = settings, list(cases)
        self.pipeline = FusionPipeline.from_pretrained(settings.model, device=settings.device)

    @property
    def cases(self) -> int:
        """Number of slabs."""
        return len(self.slabs)

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        """Metrics of `clinfuse.evaluation.objectives` for the suggestion on one slab."""
        from clinfuse.evaluation import objectives

        slab, fused = self.slabs[case], self.fuse(suggestion, case)
        preset = self.settings.spaces[suggestion.preset].preset(suggestion.params)
        found = objectives(slab, fused, self.pipeline.lesion_head, preset)
        return {name: float(value) for name, value in found.items()}

    def fuse(self, suggestion: Suggestion, case: int) -> Any:
        """The fused slab (D, H, W) in [0, 1]."""
        settings, slab = self.settings, self.slabs[case]
        preset = settings.spaces[suggestion.preset].preset(suggestion.params)
        seed = stream_seed(settings.seed, "case", case)
        result = self.pipeline(slab, preset, steps=settings.steps, seed=seed, members=settings.members)
        return result.fused


def check_cases(
    cases: Sequence[Case], goals: Sequence[Goal], limits: Sequence[Limit], known: Mapping[str, Goal]
) -> None:
    """Refuse before any trial starts what no trial could measure.

    Raises:
        InputError: no case at all.
        ConfigError: an objective or constraint whose ROI is empty in every slab.
    """
    if not cases:
        raise InputError(
            "there are no validation cases to sweep on",
            expected="cases of the split asked for",
            found="none",
            todo="give another --split, or prepare more patients",
        )
    for goal in (*goals, *(known[limit.metric] for limit in limits)):
        if goal.roi and not any(np.any(getattr(case, goal.roi)) for case in cases):
            raise ConfigError(
                f"{goal.name} cannot be measured",
                expected=f"a {goal.roi} mask in at least one case",
                found=f"none in {len(cases)} slabs",
                todo="leave the objective or constraint out, or take more --slices",
            )


def load_slabs(data: Path, *, split: str, slices: int | None, limit: int | None = None) -> list[Case]:
    """The split's cases of a store, each cut to its most telling slab, in the order of their ids."""
    from clinfuse_prep.store import CaseStore

    store = CaseStore(data)
    ids = sorted(store.case_ids(split=split))[:limit]
    return [cut(store.read(case_id), slices) for case_id in ids]

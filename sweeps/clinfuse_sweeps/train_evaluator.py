"""A trial of the training-time search: a Ray Train run with its own workers, then its model's scores.

The worker that Tune keeps holds one CPU and waits while the run's training workers work. A run is named by what
it tries, so a trial that was interrupted goes on from its last checkpoint when it is tried again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clinfuse.case import Case
from clinfuse_sweeps.fusion_evaluator import FusionEvaluator, FusionSettings
from clinfuse_sweeps.rungs import steps_at
from clinfuse_sweeps.space import TRAIN_RANGES
from clinfuse_sweeps.trainable import Suggestion

if TYPE_CHECKING:
    from clinfuse.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a trial trains.

    Attributes:
        config: the recipe as TrainConfig.to_dict gives it.
        data, data_hash: the dataset.
        storage: folder of the trials' runs.
        workers, gpus, cpus: training workers of one trial, and what each gets.
        fusion: how the trained model is scored; its `model` is set per trial.
    """

    config: Mapping[str, Any]
    data: str
    data_hash: str
    storage: str
    workers: int = 1
    gpus: float = 0.0
    cpus: int = 1
    fusion: FusionSettings


@dataclass(frozen=True)
class TrainRecipe:
    """Travels to the worker."""

    settings: TrainSettings
    cases: Sequence[Case]

    def __call__(self) -> TrainEvaluator:
        """Nothing to load yet: each trial makes its own model."""
        return TrainEvaluator(self.settings, self.cases)


class TrainEvaluator:
    """Trains a trial's model to the share asked for, then scores it on every case."""

    def __init__(self, settings: TrainSettings, cases: Sequence[Case]) -> None:
        self.settings, self.slabs = settings, list(cases)
        self.trained: tuple[Suggestion, float, FusionEvaluator] | None = None

    @property
    def cases(self) -> int:
        """Number of slabs."""
        return len(self.slabs)

    def advance(self, suggestion: Suggestion, share: float) -> None:
        """Train the trial's run up to this share of its denoiser's steps, from its last checkpoint."""
        if self.trained is None or self.trained[:2] != (suggestion, share):
            fusion = replace(self.settings.fusion, model=train(self.settings, suggestion, share))
            self.trained = (suggestion, share, FusionEvaluator(fusion, self.slabs))

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        """Metrics of the trained model on one slab; a trial that was not advanced is trained whole."""
        return self._model(suggestion).score(suggestion, case)

    def finish(self, suggestion: Suggestion) -> None:
        """Keep the picture and let go of the model."""
        self._model(suggestion).finish(suggestion)
        self.trained = None

    def _model(self, suggestion: Suggestion) -> FusionEvaluator:
        if self.trained is None or self.trained[0] != suggestion:
            self.advance(suggestion, 1.0)
        assert self.trained is not None  # advance has just set it
        return self.trained[2]


def config_of(config: TrainConfig, params: Mapping[str, float]) -> TrainConfig:
    """The recipe with a trial's values; `width` multiplies the denoiser's channels, in whole groups."""
    changes: dict[str, Any] = changes_of(params)
    width = changes.pop("width", 1.0)
    network = config.denoiser
    groups = network.groups
    wide = tuple(max(groups, groups * round(width * c / groups)) for c in network.channels)
    return config.changed({**changes, "denoiser.channels": wide})


def changes_of(params: Mapping[str, float]) -> dict[str, float]:
    """The suggestion's values that belong to the training recipe."""
    return {name: float(value) for name, value in params.items() if name in TRAIN_RANGES}


def run_name(suggestion: Suggestion) -> str:
    """A run's name that depends on the preset and the values tried alone."""
    text = json.dumps([suggestion.preset, sorted(changes_of(suggestion.params).items())])
    return f"{suggestion.preset}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def train(settings: TrainSettings, suggestion: Suggestion, share: float = 1.0) -> str:
    """Train (or go on training) the suggestion's run to a share of the denoiser's steps; its model folder."""
    from clinfuse_platform.launch import Workers, launch
    from clinfuse_platform.runs import create_run

    from clinfuse.training import TrainConfig

    config = config_of(TrainConfig.from_dict(settings.config), suggestion.params)
    whole = {"config": config.to_dict(), "data": settings.data, "data_hash": settings.data_hash}
    run = create_run(run_name(suggestion), settings.storage, {"verb": "sweep-train", **whole})
    if share < 1:
        whole["until"] = {"denoiser": steps_at(share, config.denoiser_steps)}
    workers = Workers(count=settings.workers, gpus=settings.gpus, cpus=settings.cpus)
    return str(launch("train", "model", run, whole, workers))

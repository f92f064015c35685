"""The verbs of this room: sweep, sweep-train, pareto."""

from __future__ import annotations

from clinfuse_sweeps.pareto_verb import PARETO
from clinfuse_sweeps.sweep_verb import SWEEP
from clinfuse_sweeps.train_verb import SWEEP_TRAIN

__all__ = ["PARETO", "SWEEP", "SWEEP_TRAIN"]

"""The resident worker: a Tune trainable that loads model and cases once and then takes trial after trial."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune

from clinfuse.errors import describe
from clinfuse_sweeps.trials import RECORD


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What one trial is to try.

    Attributes:
        preset: name of the preset whose study asked.
        number: the trial's number in that study.
        params: value of every searched axis, in its own unit.
    """

    preset: str
    number: int
    params: Mapping[str, float]


def stream_seed(seed: int, name: str, number: int) -> int:
    """A 32-bit seed that depends on these three alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:4], "little")


class Evaluator(Protocol):
    """What a worker holds: it can score a suggestion on each of its cases.

    `score` returns metrics by name (a metric that does not apply is NaN) and must depend only on its arguments,
    so that any worker gives the same answer. It may raise: the trial is then recorded as failed.
    """

    @property
    def cases(self) -> int:
        """How many cases a full trial visits."""
        ...

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        """Metrics of the suggestion on one case, by index."""
        ...

    def finish(self, suggestion: Suggestion) -> None:
        """Called once after the last case of a trial that did not fail."""
        ...


class EvaluatorRecipe(Protocol):
    """Small and picklable: travels to the worker, which builds its evaluator there."""

    def __call__(self) -> Evaluator:
        """Load what is needed and return the evaluator."""
        ...


def mean_metrics(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the cases in which the metric has a value; NaN where none has."""
    names = list(dict.fromkeys(name for score in scores for name in score))
    means = {}
    for name in names:
        values = [s[name] for s in scores if name in s and not math.isnan(s[name])]
        means[name] = sum(values) / len(values) if values else math.nan
    return means


class TrialWorker(tune.Trainable):
    """Scores one suggestion: all cases in one step, or a case a step when trials may be stopped early."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], recipe: EvaluatorRecipe, case_by_case: bool = False
    ) -> None:
        """Build the evaluator; happens once per worker, since workers are reused."""
        self.evaluator, self.case_by_case = recipe(), case_by_case
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next suggestion without loading anything again."""
        self._begin(new_config)
        return True

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.suggestion = Suggestion(
            preset=config["preset"], number=config["number"], params=dict(config["params"])
        )
        self.scores: list[dict[str, float]] = []
        self.rungs: list[dict[str, float]] = []
        self.seconds = 0.0

    def step(self) -> dict[str, Any]:
        """Score the next case, or all that remain; a failure is a result, so that the worker lives on."""
        total = self.evaluator.cases
        upto = len(self.scores) + 1 if self.case_by_case else total
        start, error = time.perf_counter(), ""
        try:
            if not self.scores:
                self._advance()
            while len(self.scores) < upto:
                self.scores.append(self._score(len(self.scores)))
            if len(self.scores) >= total:
                self.evaluator.finish(self.suggestion)
        except Exception as problem:
            error = describe(problem)
        self.seconds += time.perf_counter() - start
        done = bool(error) or len(self.scores) >= total
        return {RECORD: json.dumps(self._record(error, done)), "done": done}

    def _advance(self) -> None:
        """Let an evaluator that trains do so before the first case, whose time would include it."""
        advance = getattr(self.evaluator, "advance", None)
        if advance is not None:
            advance(self.suggestion, 1.0)

    def _score(self, case: int) -> dict[str, float]:
        """The evaluator's metrics on one case, and the time that they took as `seconds_per_case`."""
        start = time.perf_counter()
        score = self.evaluator.score(self.suggestion, case)
        return {**score, "seconds_per_case": time.perf_counter() - start}

    # as one JSON text: Tune flattens nested results, which would lose lists and names with slashes
    def _record(self, error: str, done: bool) -> dict[str, Any]:
        return {
            "state": "failed" if error else "complete" if done else "running",
            "error": error,
            "metrics": mean_metrics(self.scores),
            "scores": self.scores,
            "cases": len(self.scores),
            "seconds": self.seconds,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: an interrupted trial starts anew."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to restore."""

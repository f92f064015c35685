"""A sweep problem with a known answer: ZDT1, to prove the machinery without a model.

The searched values, as fractions x₁ … xₙ of their ranges, give f₁ = x₁, g = 1 + 9·mean(x₂ … xₙ),
f₂ = g·(1 − √(f₁/g)). The best front is f₂ = 1 − √f₁, reached when x₂ … xₙ are all at their lowest.
Reported as brain_ssim = 1 − f₁ and bone_ssim = 1 − f₂.

Reference: Zitzler, Deb, Thiele 2000.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from clinfuse_sweeps.space import Space
from clinfuse_sweeps.trainable import Suggestion

from clinfuse.errors import InputError

# area that the true front dominates up to (f₁, f₂) = (1, 1): ∫₀¹ √x dx
TRUE_HYPERVOLUME = 2 / 3


@dataclass(frozen=True)
class Zdt1:
    """Recipe and evaluator in one.

    Attributes:
        spaces: by preset name.
        cases: how many equal cases a trial visits.
        seconds: pretended work per case.
        noise: spread of the metrics over cases (fixed per case), plus half of it per trial and case.
        failing: trial numbers that raise.
        killing: trial ids ("balanced-0004") that take their worker down.
        register: a folder in which every worker leaves a file when it loads the evaluator.
    """

    spaces: Mapping[str, Space]
    cases: int = 1
    seconds: float = 0.0
    noise: float = 0.0
    failing: frozenset[int] = field(default_factory=frozenset)
    killing: frozenset[str] = field(default_factory=frozenset)
    register: str = ""

    def __call__(self) -> Zdt1:
        """As a recipe: itself."""
        if self.register:
            (Path(self.register) / uuid4().hex).touch()
        return self

    def score(self, suggestion: Suggestion, case: int) -> dict[str, float]:
        """1 − f₁ and 1 − f₂ of the suggestion; the case does not matter."""
        if self.seconds:
            time.sleep(self.seconds)
        if f"{suggestion.preset}-{suggestion.number:04d}" in self.killing:
            os._exit(1)
        if suggestion.number in self.failing:
            raise InputError("this trial is meant to fail")
        space = self.spaces[suggestion.preset]
        x = [axis.fraction(suggestion.params[axis.name]) for axis in space.axes]
        f1 = min(max(x[0], 0.0), 1.0)
        g = 1 + 9 * sum(x[1:]) / max(len(x) - 1, 1)
        f2 = g * (1 - math.sqrt(f1 / g))
        brain, bone = (self.noise * wobble for wobble in self._wobbles(suggestion, case))
        return {"brain_ssim": 1 - f1 + brain, "bone_ssim": 1 - f2 + bone, "lesion_dice": math.nan, "seam": g}

    def _wobbles(self, suggestion: Suggestion, case: int) -> tuple[float, float]:
        """Two standard normal numbers of the case, plus halves of two of the trial on this case."""
        shared = random.Random(f"{case}")
        own = random.Random(f"{suggestion.preset}/{suggestion.number}/{case}")
        brain, bone = (shared.gauss(0, 1) + 0.5 * own.gauss(0, 1) for _ in range(2))
        return brain, bone

    def finish(self, suggestion: Suggestion) -> None:
        """Nothing to keep."""

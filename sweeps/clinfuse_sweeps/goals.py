"""What a sweep measures: each metric's direction, unit and range, and the limits a trial must keep."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import ConfigError

LossArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One metric that a trial reports.

    Attributes:
        name: column in trials.parquet.
        label: words for axes and tables.
        direction: "max" (more is better) or "min".
        unit: "" for a pure number, else mm or s.
        best, worst: the ideal value, and the one that no result goes beyond.
        roi: the mask that must exist for the metric to have a value, or "".
    """

    name: str
    label: str
    direction: str
    unit: str = ""
    best: float = 1.0
    worst: float = 0.0
    roi: str = ""

    @property
    def axis(self) -> str:
        """Label with unit and an arrow that points to better."""
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.label}{unit} {'→ more is better' if self.direction == 'max' else '→ less is better'}"

    def loss(self, value: float) -> float:
        """The value turned so that less is better."""
        return -value if self.direction == "max" else value


GOALS: dict[str, Goal] = {
    goal.name: goal
    for goal in (
        Goal(name="brain_ssim", label="Brain SSIM to MRI", direction="max", worst=-1.0, roi="brain"),
        Goal(name="bone_ssim", label="Bone SSIM to CT", direction="max", worst=-1.0, roi="bone"),
        Goal(name="lesion_dice", label="Lesion Dice", direction="max", roi="lesion"),
        Goal(name="lesion_nsd", label="Lesion surface Dice (NSD)", direction="max", roi="lesion"),
        Goal(
            name="lesion_hd95_mm",
            label="Lesion HD95",
            direction="min",
            unit="mm",
            best=0.0,
            worst=math.inf,
            roi="lesion",
        ),
        Goal(name="seam", label="Seam index", direction="min", best=0.0, worst=math.inf),
        Goal(name="ece", label="Calibration error (ECE)", direction="min", best=0.0, worst=1.0),
        Goal(
            name="seconds_per_case",
            label="Time per case",
            direction="min",
            unit="s",
            best=0.0,
            worst=math.inf,
        ),
    )
}
DEFAULT_OBJECTIVES = ("brain_ssim", "bone_ssim")


def find_goals(names: Sequence[str], *, at_least: int = 2) -> tuple[Goal, ...]:
    """The goals of these names, in that order.

    Raises:
        ConfigError: an unknown name (nearest names offered), a repeated one, or fewer than `at_least`.
    """
    for name in names:
        if name not in GOALS:
            near = difflib.get_close_matches(name, GOALS, n=3, cutoff=0.3) or sorted(GOALS)
            raise ConfigError(
                "no such objective", expected=f"for example {', '.join(near)}", found=repr(name)
            )
    if len(set(names)) != len(names) or len(names) < at_least:
        raise ConfigError(
            "the objectives cannot be used together",
            expected=f"at least {at_least} different ones",
            found=", ".join(names) or "none",
        )
    return tuple(GOALS[name] for name in names)


def losses(rows: Sequence[Mapping[Any, Any]], goals: Sequence[Goal]) -> LossArray:
    """(trials, goals) float64 matrix in which less is better; a missing value is NaN."""
    table = [[goal.loss(float(row.get(goal.name, math.nan))) for goal in goals] for row in rows]
    return np.asarray(table, dtype=np.float64).reshape(len(rows), len(goals))


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A constraint such as `bone_ssim >= 0.6`: trials that break it are kept but never on a front.

    Attributes:
        metric: name of a goal.
        sense: ">=" or "<=".
        bound: the value that must be kept, in the metric's unit.
    """

    metric: str
    sense: str
    bound: float

    def violation(self, value: float) -> float:
        """How far the value is on the wrong side: > 0 broken, ≤ 0 kept; a NaN is broken without end."""
        if math.isnan(value):
            return math.inf
        return self.bound - value if self.sense == ">=" else value - self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.sense}{self.bound:g}"


def parse_limit(text: str) -> Limit:
    """A limit from `METRIC>=NUMBER` or `METRIC<=NUMBER`.

    Raises:
        ConfigError: another form, or an unknown metric (nearest names offered).
    """
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        raise ConfigError("the constraint has the wrong form", expected="METRIC>=NUMBER", found=repr(text))
    find_goals([match[1]], at_least=1)
    return Limit(metric=match[1], sense=match[2], bound=bound)


def check_limits(limits: Sequence[Limit]) -> None:
    """Refuse limits that no value can keep, alone or together.

    Raises:
        ConfigError: a limit beyond the metric's ideal value, or two on one metric that exclude each other.
    """
    for limit in limits:
        goal = GOALS[limit.metric]
        least, most = sorted((goal.best, goal.worst))
        if limit.violation(most if limit.sense == ">=" else least) > 0:
            raise ConfigError(
                "no result can keep the constraint",
                expected=f"{least:g} <= {limit.metric} <= {most:g}",
                found=str(limit),
            )
    for low in limits:
        for high in limits:
            same = low.metric == high.metric and low.sense == ">=" and high.sense == "<="
            if same and low.bound > high.bound:
                raise ConfigError(
                    "the constraints exclude each other",
                    expected="a value that keeps both",
                    found=f"{low} and {high}",
                    todo="loosen one of them",
                )


def feasible(row: Mapping[str, float], limits: Sequence[Limit]) -> bool:
    """Whether the row's metrics keep every limit."""
    return all(limit.violation(float(row.get(limit.metric, math.nan))) <= 0 for limit in limits)

"""Goals to read values against: as data, beside the values of a summary, and which of them a method reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clinfuse.evaluation.tables import number

SPLIT = "test"
"""Goals are stated for patients that were not seen in training, nor in calibration."""
PROJECT = "set by this project"
FIELD = "the fusion field's tables of MRI and CT slices (AANLIB)"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the mean over cases of one metric in one region should reach.

    Attributes:
        metric, roi: as in the rows.
        least, most: bounds in the unit of the rows, both reached when met exactly; infinite where there is none.
        source: where the goal comes from.
    """

    metric: str
    roi: str
    least: float = -math.inf
    most: float = math.inf
    source: str = PROJECT

    def reached(self, value: float) -> bool:
        """Whether the value lies within the bounds; NaN never does."""
        return self.least <= value <= self.most

    @property
    def text(self) -> str:
        """ "≥ 0.960", "≤ 0.300", "0.890 to 0.910"."""
        least, most = number(self.least), number(self.most)
        if math.isinf(self.least):
            return f"≤ {most}"
        return f"≥ {least}" if math.isinf(self.most) else f"{least} to {most}"


UNCERTAINTY_GOALS = tuple(
    Goal(metric=metric, roi=roi, least=least, most=most)
    for roi in ("head", "brain", "bone", "lesion")
    for metric, least, most in (
        ("ece", -math.inf, 0.02),
        ("ece_pooled", -math.inf, 0.02),
        ("coverage", 0.89, 0.91),  # of nominal 0.90, as in rows.TWO_SIDED
        ("spearman", 0.5, math.inf),
        ("ause_ratio", -math.inf, 0.3),
    )
)
GOALS = (
    Goal(metric="ssim", roi="brain", least=0.96),
    Goal(metric="ssim", roi="bone", least=0.985),
    Goal(metric="psnr", roi="bone", least=40.0),
    Goal(metric="seam", roi="borders", most=0.30),
    *UNCERTAINTY_GOALS,
    Goal(metric="MI", roi="whole", least=3.4 * math.log(2), source=f"{FIELD}, there 3.4 bit"),
    Goal(metric="SCD", roi="whole", least=1.5, source=FIELD),
    Goal(metric="VIF", roi="whole", least=0.75, source=FIELD),
    Goal(metric="Qabf", roi="whole", least=0.70, source=FIELD),
    Goal(metric="SSIM_sum", roi="whole", least=1.38, source=FIELD),
)
"""Units as of the rows: psnr in dB, seam in 8-bit greys, MI in nat, all others 1."""


def with_goals(summary: pd.DataFrame, split: str = SPLIT) -> pd.DataFrame:
    """A summary with columns `goal` (its words, "" where there is none) and `reached`, which tables then show.

    Args:
        summary: from `summarise`.
        split: that was evaluated; the summary of one for which no goals are stated stays as it is.
    """
    if split != SPLIT:
        return summary
    goals = {(goal.metric, goal.roi): goal for goal in GOALS}
    found = [goals.get(pair) for pair in zip(summary["metric"], summary["roi"], strict=True)]
    return summary.assign(
        goal=[goal.text if goal else "" for goal in found],
        reached=[
            bool(goal and goal.reached(mean)) for goal, mean in zip(found, summary["mean"], strict=True)
        ],
    )


def standing(summary: pd.DataFrame, method: str) -> dict[str, Any]:
    """Which goals one method reaches, by its means.

    Args:
        summary: from `summarise`.
        method: its name there.

    Returns:
        method; reached, missed and not_measured: lists of {metric, roi, value (None if not measured), goal, source}.
    """
    own = summary[summary["method"] == method]
    means = dict(zip(zip(own["metric"], own["roi"], strict=True), own["mean"], strict=True))
    lists: dict[str, list[dict[str, Any]]] = {"reached": [], "missed": [], "not_measured": []}
    for goal in GOALS:
        value = float(means.get((goal.metric, goal.roi), math.nan))
        measured = math.isfinite(value)
        kind = "reached" if goal.reached(value) else "missed" if measured else "not_measured"
        facts = {"metric": goal.metric, "roi": goal.roi, "value": value if measured else None}
        lists[kind].append({**facts, "goal": goal.text, "source": goal.source})
    return {"method": method, **lists}


def standing_line(found: dict[str, Any]) -> str:
    """A standing in one sentence: how many goals of those measured, and which are missed, by what value."""
    reached, missed, absent = (len(found[kind]) for kind in ("reached", "missed", "not_measured"))
    words = f"{found['method']} reaches {reached} of the {reached + missed} goals measured"
    if missed:
        told = (f"{m['metric']} {m['roi']} {number(m['value'])} ({m['goal']})" for m in found["missed"])
        words += f"; missed: {', '.join(told)}"
    return words + (f"; {absent} not measured" if absent else "")

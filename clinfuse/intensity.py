"""How bright the heads of a dataset are: what a model was trained on, and whether what comes in later is like it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clinfuse.case import Case


def head_means(case: Case) -> dict[str, float]:
    """Mean intensity of each image over the head's voxels, by "anatomy" and "companion", in [0, 1].

    The head is where either image exceeds 0.03; a case without such a voxel gives an empty dict.
    """
    head = case.head
    if not head.any():
        return {}
    return {"anatomy": float(case.anatomy[head].mean()), "companion": float(case.companion[head].mean())}


def intensity_facts(cases: Iterable[Case]) -> dict[str, Any]:
    """Mean and standard deviation over cases of `head_means`, for a model's facts.

    Returns:
        "anatomy" and "companion" → {"mean", "std"}, and "cases", their number; an empty dict without any case.
    """
    means = [found for found in map(head_means, cases) if found]
    if not means:
        return {}
    facts: dict[str, Any] = {"cases": len(means)}
    for name in ("anatomy", "companion"):
        values = np.array([found[name] for found in means])
        facts[name] = {"mean": round(float(values.mean()), 4), "std": round(float(values.std()), 4)}
    return facts

"""Which sweeps asked the same: those that differ in the seed alone are runs of one search; others are told apart.

A sweep's question is all that decides where its trials lie and what their values mean. How many trials ran at a time
is no part of it (that depends on the machine), nor are the other presets of the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clinfuse_sweeps.plan import QUESTION, Plan

# what keeps two sweeps' values from being laid side by side …
VALUES = {
    "model_hash": "with different models",
    "members": "with different numbers of members",
    "recipe": "with different recipes",
    "set": "with different options of the recipe",
    "workers": "with different numbers of training workers",
    "data_hash": "on different data",
    "simulated": "on simulated and on measured images",
    "split": "on different splits",
    "cases": "on different validation cases",
    "slices": "on slabs of different thickness",
    "steps": "with different numbers of sampling steps",
    "cpus": "with different shares of the machine",
    "gpus": "with different shares of the machine",
}
# … and what keeps their hypervolumes from telling more than how they were searched
SEARCH = {
    "space": "over different ranges or around different values",
    "sampler": "with different samplers",
    "trials": "with different numbers of trials",
    "objectives": "for different objectives",
    "limits": "under different constraints",
    "halving": "with and without stopping dominated trials early",
    "rungs": "with different numbers of rungs",
}


def question(plan: Plan, preset: str) -> dict[str, str]:
    """What a sweep asked of one preset, but for the seed: JSON text by name, equal for runs that may be pooled."""
    return {**_settings(plan), "space": plan.spaces[preset].to_json()}


def differences(plans: Sequence[Plan], presets: Sequence[str]) -> list[str]:
    """A sentence for each thing, beyond the seed, in which sweeps of these presets differ."""
    differing = _differing([_settings(plan) for plan in plans])
    for preset in presets:
        differing |= _differing([question(plan, preset) for plan in plans if preset in plan.spaces])
    other = {name: f"with different {name}" for name in sorted(differing) if name not in VALUES | SEARCH}
    values = [text for name, text in (VALUES | other).items() if name in differing]
    searches = [text for name, text in SEARCH.items() if name in differing]
    return [
        *(f"The sweeps were run {text}: compare their values with care." for text in dict.fromkeys(values)),
        *(f"The sweeps searched {text}: compare what they reach with care." for text in searches),
    ]


def _settings(plan: Plan) -> dict[str, str]:
    """The part of the question that all presets of a sweep share; a fact that is None is as one not told."""
    asked: dict[str, Any] = {name: getattr(plan, name) for name in (*QUESTION, "trials", "cpus", "gpus")}
    asked["limits"] = sorted(map(str, plan.limits))
    asked |= {name: value for name, value in plan.facts.items() if value is not None}
    return {name: json.dumps(value, sort_keys=True) for name, value in asked.items()}


def _differing(asked: Sequence[dict[str, str]]) -> set[str]:
    names = {name for one in asked for name in one}
    return {name for name in names if len({one.get(name) for one in asked}) > 1}

"""Compare sweeps: presets side by side, several runs of one preset pooled, every number the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinfuse.errors import ConfigError, InputError
from clinfuse_sweeps.fronts import common_reference, coverage, hypervolume, hypervolume_interval
from clinfuse_sweeps.goals import Goal, Limit, LossArray, feasible, losses
from clinfuse_sweeps.plan import Plan, load_plan
from clinfuse_sweeps.trials import front_of, mark_fronts, read_trials

# facts that must agree if two sweeps' values are to be laid side by side
COMMON_FACTS = ("cases", "slices", "steps", "model_hash")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep folder, read."""

    folder: Path
    plan: Plan
    table: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One preset in the comparison.

    Attributes:
        label: its name, with the sweep's name where two sweeps on different models or data hold the preset.
        preset: the preset's name.
        description: a sentence for a clinician.
        table: its trials of all runs, with the pooled front and knee marked; column `folder` says whence.
        runs: the same trials run by run (a run is one sweep folder).
        limits: the constraints its sweeps were given.
    """

    label: str
    preset: str
    description: str
    table: pd.DataFrame
    runs: tuple[pd.DataFrame, ...]
    limits: tuple[Limit, ...] = ()

    def values(self, goals: Sequence[Goal], *, front: bool = False) -> LossArray:
        """(trials, goals) losses of the feasible trials, or of the front alone."""
        rows = self.table[self.table["on_front"] if front else self.table["feasible"]]
        return losses(rows.to_dict("records"), goals)

    def trial_name(self, row: Mapping[Any, Any] | pd.Series) -> str:
        """The trial's id, after its run's name (or path, where names are alike) if several runs are pooled."""
        if len(self.runs) < 2:
            return str(row["trial_id"])
        folders = [str(run["folder"].iloc[0]) for run in self.runs if len(run)]
        name = Path(row["folder"]).name
        alike = [Path(folder).name for folder in folders].count(name) > 1
        return f"{row['folder'] if alike else name}/{row['trial_id']}"

    @property
    def knee(self) -> pd.Series | None:
        """The knee's row, or None if no trial is feasible."""
        rows = self.table[self.table["knee"]]
        return None if rows.empty else rows.iloc[0]

    @property
    def own(self) -> pd.Series | None:
        """The row of the preset's own values, or None if that trial failed."""
        rows = self.table[(self.table["origin"] == "preset") & (self.table["state"] == "complete")]
        return None if rows.empty else rows.iloc[0]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Presets side by side.

    Attributes:
        goals: the objectives compared.
        entries: the presets.
        reference: (goals,) the common reference point, as losses.
        numbers: a row per entry: trials, front size, hypervolume with interval, share of the union's hypervolume.
        coverage: (entries, entries) C-metric, row covers column.
        warnings: what keeps the values from being strictly comparable.
    """

    goals: tuple[Goal, ...]
    entries: tuple[Entry, ...]
    reference: NDArray[np.float64]
    numbers: pd.DataFrame
    coverage: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def open_sweep(folder: Path) -> Sweep:
    """Read a sweep folder.

    Raises:
        InputError: it is none, is of another version, or its trials are not there yet.
    """
    return Sweep(folder=folder, plan=load_plan(folder), table=read_trials(folder))


def compare(
    sweeps: Sequence[Sweep], *, presets: Sequence[str] | None = None, goals: Sequence[Goal] | None = None
) -> Comparison:
    """Lay the sweeps' presets side by side on a common reference point.

    Args:
        sweeps: at least one.
        presets: which ones, in order; default all.
        goals: objectives; default those of the first sweep.

    Raises:
        ConfigError: a preset that no sweep holds (those there are, are named), or no feasible trial at all
            (with the constraint that excludes most).
    """
    chosen = tuple(goals or sweeps[0].plan.goals)
    known = list(dict.fromkeys(name for sweep in sweeps for name in sweep.plan.spaces))
    for name in presets or ():
        if name not in known:
            raise ConfigError("no sweep holds this preset", expected=f"one of {', '.join(known)}", found=name)
    entries = [entry for name in presets or known for entry in _entries(sweeps, name, chosen)]
    feasible_sets = [entry.values(chosen) for entry in entries]
    if not any(len(values) for values in feasible_sets):
        raise ConfigError("no trial can be compared", found=_why_none(entries), todo="loosen the constraint")
    reference = common_reference(feasible_sets)
    cover = [[coverage(a.values(chosen), b.values(chosen, front=True)) for b in entries] for a in entries]
    return Comparison(
        goals=chosen,
        entries=tuple(entries),
        reference=reference,
        numbers=_numbers(entries, chosen, reference),
        coverage=np.asarray(cover, dtype=np.float64),
        warnings=tuple(_warnings(sweeps, chosen)),
    )


def _entries(sweeps: Sequence[Sweep], preset: str, goals: Sequence[Goal]) -> list[Entry]:
    """One entry per model and data: runs that differ only in seed are pooled."""
    holding = [sweep for sweep in sweeps if preset in sweep.plan.spaces]
    groups: dict[str, list[Sweep]] = {}
    for sweep in holding:
        groups.setdefault(repr([sweep.plan.facts.get(key) for key in COMMON_FACTS]), []).append(sweep)
    entries = []
    for group in groups.values():
        runs = [mark_fronts(_judged(s, preset), goals).assign(folder=str(s.folder)) for s in group]
        table = mark_fronts(pd.concat(runs, ignore_index=True), goals)
        where = f" ({', '.join(sweep.folder.name for sweep in group)})" if len(groups) > 1 else ""
        base = group[0].plan.spaces[preset].base
        limits = tuple(dict.fromkeys(limit for sweep in group for limit in sweep.plan.limits))
        entries.append(
            Entry(
                label=preset + where,
                preset=preset,
                description=base.description,
                table=table,
                runs=tuple(runs),
                limits=limits,
            )
        )
    return entries


def _judged(sweep: Sweep, preset: str) -> pd.DataFrame:
    """The preset's trials with `feasible` judged anew: complete, and within the sweep's limits."""
    table = sweep.table[sweep.table["preset"] == preset].copy()
    rows: list[dict[Any, Any]] = table.to_dict("records")
    kept = [row["state"] == "complete" and feasible(row, sweep.plan.limits) for row in rows]
    table["feasible"] = np.asarray(kept, dtype=bool)
    return table


def _numbers(entries: Sequence[Entry], goals: Sequence[Goal], reference: NDArray[np.float64]) -> pd.DataFrame:
    union = hypervolume(np.concatenate([entry.values(goals) for entry in entries]), reference)
    rows = []
    for entry in entries:
        values = entry.values(goals)
        volume = hypervolume(values, reference)
        low, high = _interval(entry, goals, reference)
        rows.append(
            {
                "preset": entry.label,
                "runs": len(entry.runs),
                "trials": len(entry.table),
                "failed": int((entry.table["state"] == "failed").sum()),
                "feasible": len(values),
                "front": int(entry.table["on_front"].sum()),
                "hypervolume": volume,
                "low": low,
                "high": high,
                "share": volume / union if union > 0 else math.nan,
            }
        )
    return pd.DataFrame(rows)


def _interval(entry: Entry, goals: Sequence[Goal], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Range over the runs where there are several, else the bootstrap interval over trials."""
    if len(entry.runs) > 1:
        each = [
            hypervolume(losses(run[run["feasible"]].to_dict("records"), goals), reference)
            for run in entry.runs
        ]
        return min(each), max(each)
    return hypervolume_interval(entry.values(goals), reference)


def _why_none(entries: Sequence[Entry]) -> str:
    broken: dict[str, int] = {}
    complete = 0
    for entry in entries:
        rows: list[dict[Any, Any]] = entry.table[entry.table["state"] == "complete"].to_dict("records")
        complete += len(rows)
        for limit in entry.limits:
            broken[str(limit)] = broken.get(str(limit), 0) + sum(not feasible(r, [limit]) for r in rows)
    if not complete:
        return "no trial was completed"
    worst = max(broken, key=lambda name: broken[name]) if broken else "an objective without finite values"
    return f"{complete} completed trials, of which {broken.get(worst, complete)} break {worst}"


def _warnings(sweeps: Sequence[Sweep], goals: Sequence[Goal]) -> list[str]:
    words = {
        "cases": "on different validation cases",
        "slices": "on slabs of different thickness",
        "steps": "with different numbers of sampling steps",
        "model_hash": "with different models",
    }
    found = []
    for key, text in words.items():
        if len({repr(sweep.plan.facts.get(key)) for sweep in sweeps}) > 1:
            found.append(f"The sweeps were run {text}: compare their values with care.")
    missing = [g.name for g in goals if any(g.name not in sweep.table for sweep in sweeps)]
    if missing:
        raise InputError("a sweep did not measure this", expected=", ".join(missing), found="no such column")
    return found


def trade(entry: Entry, goals: Sequence[Goal]) -> pd.DataFrame:
    """What can be had and what it costs: the preset now, the knee, and the front's end for each goal.

    A row per position with each goal's value and, in `<goal> Δ`, its gain against the preset now (> 0: better).
    """
    front = front_of(entry.table, entry.preset, goals)
    places: dict[str, pd.Series | None] = {"preset now": entry.own, "knee": entry.knee}
    for goal in goals:
        if len(front):
            at = front[goal.name].argmax() if goal.direction == "max" else front[goal.name].argmin()
            places[f"best {goal.label}"] = front.iloc[int(at)]
    rows = []
    for name, row in places.items():
        if row is None:
            continue
        line: dict[str, Any] = {"position": name, "trial": entry.trial_name(row)}
        for goal in goals:
            line[goal.label] = float(row[goal.name])
            if entry.own is not None:
                line[f"{goal.label} Δ"] = goal.loss(float(entry.own[goal.name])) - goal.loss(
                    float(row[goal.name])
                )
        rows.append(line)
    return pd.DataFrame(rows)


def position(entry: Entry, goals: Sequence[Goal]) -> str:
    """Where the preset's own values stand: on the front, or dominated (by which trial), or without a value."""
    own = entry.own
    if own is None:
        return "its own values gave no result"
    if not own["feasible"]:
        return "its own values break a constraint"
    if own["on_front"]:
        return "its own values lie on the front"
    front = entry.table[entry.table["on_front"]]
    mine = losses([own.to_dict()], goals)[0]
    better = (losses(front.to_dict("records"), goals) <= mine).all(axis=1)
    names = ", ".join(entry.trial_name(row) for row in front[better].head(3).to_dict("records"))
    return f"its own values are dominated by {names}"

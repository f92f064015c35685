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
from clinfuse_sweeps.alike import differences, question
from clinfuse_sweeps.fronts import common_reference, coverage, hypervolume, hypervolume_interval
from clinfuse_sweeps.goals import Goal, Limit, LossArray, feasible, losses
from clinfuse_sweeps.plan import Plan, load_plan
from clinfuse_sweeps.space import Space
from clinfuse_sweeps.trials import front_of, mark_fronts, read_trials


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
        label: its name, with the sweeps' names where sweeps that differ in more than the seed hold the preset.
        preset: the preset's name.
        space: what was searched around it.
        table: its trials of all runs, with the pooled front and knee marked; column `folder` says whence.
        runs: the same trials run by run (a run is one sweep folder).
        limits: the constraints its sweeps were given.
    """

    label: str
    preset: str
    space: Space
    table: pd.DataFrame
    runs: tuple[pd.DataFrame, ...]
    limits: tuple[Limit, ...] = ()

    @property
    def description(self) -> str:
        """The preset in a sentence for a clinician."""
        return self.space.base.description

    def values(self, goals: Sequence[Goal], *, front: bool = False) -> LossArray:
        """(trials, goals) losses of the feasible trials, or of the front alone."""
        rows = self.table[self.table["on_front"] if front else self.table["feasible"]]
        return losses(rows.to_dict("records"), goals)

    def trial_name(self, row: Mapping[Any, Any] | pd.Series) -> str:
        """The trial's id, after its run's name (or path, where names are alike) if several runs are pooled."""
        if len(self.runs) < 2:
            return str(row["trial_id"])
        names = _short_names([str(run["folder"].iloc[0]) for run in self.runs if len(run)])
        return f"{names[row['folder']]}/{row['trial_id']}"

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

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the values searched by any entry; the others' trials have none of them."""
        return tuple(dict.fromkeys(name for entry in self.entries for name in entry.space.names))


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
        InputError: a sweep did not measure one of the goals.
    """
    chosen = tuple(goals or sweeps[0].plan.goals)
    _check_measured(sweeps, chosen)
    known = list(dict.fromkeys(name for sweep in sweeps for name in sweep.plan.spaces))
    for name in presets or ():
        if name not in known:
            raise ConfigError("no sweep holds this preset", expected=f"one of {', '.join(known)}", found=name)
    names = list(presets or known)
    entries = [entry for name in names for entry in _entries(sweeps, name, chosen)]
    feasible_sets = [entry.values(chosen) for entry in entries]
    if not any(len(values) for values in feasible_sets):
        raise ConfigError("no trial can be compared", found=_why_none(entries), todo="loosen the constraint")
    plans = [sweep.plan for sweep in sweeps if set(names) & set(sweep.plan.spaces)]
    reference = common_reference(feasible_sets)
    cover = [[coverage(a.values(chosen), b.values(chosen, front=True)) for b in entries] for a in entries]
    return Comparison(
        goals=chosen,
        entries=tuple(entries),
        reference=reference,
        numbers=_numbers(entries, chosen, reference),
        coverage=np.asarray(cover, dtype=np.float64),
        warnings=tuple(differences(plans, names)),
    )


def _check_measured(sweeps: Sequence[Sweep], goals: Sequence[Goal]) -> None:
    missing = [goal.name for goal in goals if any(goal.name not in sweep.table for sweep in sweeps)]
    if missing:
        raise InputError("a sweep did not measure this", expected=", ".join(missing), found="no such column")


def _entries(sweeps: Sequence[Sweep], preset: str, goals: Sequence[Goal]) -> list[Entry]:
    """One entry per question: runs that differ in the seed alone are pooled."""
    holding = [sweep for sweep in sweeps if preset in sweep.plan.spaces]
    groups: dict[str, list[Sweep]] = {}
    for sweep in holding:
        asked = sorted(question(sweep.plan, preset).items())
        groups.setdefault(repr(asked), []).append(sweep)
    names = _short_names([str(sweep.folder) for sweep in holding])
    entries = []
    for group in groups.values():
        runs = [mark_fronts(_judged(s, preset), goals).assign(folder=str(s.folder)) for s in group]
        table = mark_fronts(pd.concat(runs, ignore_index=True), goals)
        where = f" ({', '.join(names[str(sweep.folder)] for sweep in group)})" if len(groups) > 1 else ""
        entries.append(
            Entry(
                label=preset + where,
                preset=preset,
                space=group[0].plan.spaces[preset],
                table=table,
                runs=tuple(runs),
                limits=group[0].plan.limits,
            )
        )
    return entries


def _short_names(folders: Sequence[str]) -> dict[str, str]:
    """Each folder's name, or its path where names are alike."""
    names = [Path(folder).name for folder in folders]
    return {f: name if names.count(name) == 1 else f for f, name in zip(folders, names, strict=True)}


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

"""A sweep's trials as tables: the journal of Optuna read into rows, fronts drawn from them, Parquet written whole.

A row of trials.parquet: trial_id, preset, number, origin (preset | neighbour | search), seed, one column per
searched value, one per metric, seconds (compute), cases (evaluated), state (complete | failed | stopped |
running | interrupted), error, feasible, on_front, knee.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from clinfuse_platform.storage import write_table

from clinfuse.errors import InputError
from clinfuse_sweeps.fronts import knee, non_dominated
from clinfuse_sweeps.goals import Goal, Limit, feasible, losses

KEYS = ("trial_id", "preset", "number", "origin", "seed")
FACTS = ("seconds", "cases", "state", "error", "feasible", "on_front", "knee")
RECORD = "record"  # Optuna user attribute that holds a finished trial's facts


def journal_rows(study: Any, *, preset: str, seed: int, limits: Sequence[Limit] = ()) -> list[dict[str, Any]]:
    """The rows of one preset's study, in the order in which the trials were asked for.

    Args:
        study: optuna Study of the preset.
        preset: its name.
        seed: the sweep's seed.
        limits: constraints that decide `feasible`.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "WAITING":
            continue
        record: Mapping[str, Any] = trial.user_attrs.get(RECORD, {})
        row: dict[str, Any] = {
            "trial_id": f"{preset}-{trial.number:04d}",
            "preset": preset,
            "number": trial.number,
            "origin": trial.user_attrs.get("origin", "search"),
            "seed": seed,
            **trial.params,
            **record.get("metrics", {}),
            "seconds": float(record.get("seconds", math.nan)),
            "cases": int(record.get("cases", 0)),
            "state": record.get("state") or _state(trial),
            "error": record.get("error", ""),
        }
        row["feasible"] = row["state"] == "complete" and feasible(row, limits)
        rows.append(row)
    return rows


def _state(trial: Any) -> str:
    names = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}
    return names[trial.state.name]


def trials_table(
    rows: Sequence[Mapping[str, Any]], *, params: Sequence[str], metrics: Sequence[str], goals: Sequence[Goal]
) -> pd.DataFrame:
    """All presets' rows as one table, with each preset's front and knee marked among its feasible trials."""
    columns = [*KEYS, *params, *metrics, *FACTS]
    table = pd.DataFrame(list(rows)).reindex(columns=columns)
    for name in (*params, *metrics):
        table[name] = table[name].astype(float)
    for name in ("feasible", "on_front", "knee"):
        table[name] = table[name].eq(True)
    return mark_fronts(table, goals)


def mark_fronts(table: pd.DataFrame, goals: Sequence[Goal]) -> pd.DataFrame:
    """The table with on_front and knee set per preset for these goals."""
    table = table.copy()
    table[["on_front", "knee"]] = False
    for _, rows in table[table["feasible"]].groupby("preset", sort=False):
        values = losses(rows.to_dict("records"), goals)
        front = non_dominated(values)
        table.loc[rows.index[front], "on_front"] = True
        best = knee(np.where(front[:, None], values, np.nan))
        if best is not None:
            table.loc[rows.index[best], "knee"] = True
    return table


def front_of(table: pd.DataFrame, preset: str, goals: Sequence[Goal]) -> pd.DataFrame:
    """The preset's front, sorted along the first goal from best to worst."""
    rows = table[(table["preset"] == preset) & table["on_front"]]
    return rows.sort_values(goals[0].name, ascending=goals[0].direction == "min", kind="stable")


def read_trials(folder: Path) -> pd.DataFrame:
    """A sweep folder's trials.parquet.

    Raises:
        InputError: no such file, unreadable, or columns missing (they are named).
    """
    path = folder / "trials.parquet"
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(
            "the folder holds no readable trials.parquet",
            expected="a sweep folder",
            found=type(error).__name__,
            todo="give the folder that `clinfuse sweep --out` wrote",
        ) from error
    missing = sorted({*KEYS, *FACTS} - set(table.columns))
    if missing:
        raise InputError(
            "trials.parquet is of another make", expected=f"columns {missing}", found="none of these"
        )
    return table


def write_fronts(table: pd.DataFrame, folder: Path, goals: Sequence[Goal]) -> dict[str, Path]:
    """fronts/<preset>.parquet for every preset of the table; an empty front is an empty table."""
    files = {preset: folder / "fronts" / f"{preset}.parquet" for preset in dict.fromkeys(table["preset"])}
    for preset, file in files.items():
        write_table(file, front_of(table, preset, goals))
    return files

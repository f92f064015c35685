"""Turn a chosen trial into a preset file with provenance, ready for `--presets-file` and PUT /v1/presets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from clinfuse_platform.storage import write_atomic

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ConfigError
from clinfuse.presets import RANGES, Preset, dump_presets
from clinfuse_sweeps.compare import Comparison, Entry, Sweep
from clinfuse_sweeps.space import SAMPLING_RANGES, SCHEDULES, Space

LONGEST = 400  # characters of a description that a service takes
DIGITS = 4  # significant; the search does not know more


def export_preset(
    comparison: Comparison,
    sweeps: Sequence[Sweep],
    preset: str,
    folder: Path,
    *,
    trial: str | None = None,
    name: str | None = None,
) -> Path:
    """Write `<name>.yaml` with the chosen trial's values; beside it the same as the body of a PUT request
    (`<name>.json`) and where it comes from (`<name>.provenance.json`).

    Args:
        comparison: holds the preset.
        sweeps: the folders it came from.
        preset: whose trial; the entry's label where several entries hold the preset.
        folder: where to write.
        trial: trial id; default the knee.
        name: of the new preset; default the preset's own, which it then replaces when loaded.

    Returns:
        Path of the YAML file.

    Raises:
        ConfigError: no entry, or more than one, holds the preset, or it has no such (completed) trial.
    """
    entry = _held(comparison, preset)
    row = _chosen(entry, trial)
    sweep = next(s for s in sweeps if str(s.folder) == row["folder"])
    space = entry.space
    if not set(space.names) & set(RANGES):
        raise ConfigError(
            "these trials trained models; they hold no preset",
            expected="a sweep of presets",
            found=", ".join(space.names),
            todo="use the trial's run in the sweep folder's runs",
        )
    values = {axis.name: axis.clip(float(f"{float(row[axis.name]):.{DIGITS}g}")) for axis in space.axes}
    chosen = replace(space.preset(values), name=name or entry.preset, description=_description(entry, row))
    path = folder / f"{chosen.name}.yaml"
    head = f"# {RESEARCH_USE}\n# Found by clinfuse sweep, trial {row['trial_id']}; see {path.stem}.provenance.json\n"
    write_atomic(path, head + dump_presets({chosen.name: chosen}))
    body = {key: value for key, value in chosen.as_dict().items() if key != "name"}
    write_atomic(path.with_suffix(".json"), json.dumps(body, indent=1))
    provenance = _provenance(chosen, comparison, sweep, row, space)
    write_atomic(path.with_suffix(".provenance.json"), json.dumps(provenance, indent=1))
    return path


def _held(comparison: Comparison, name: str) -> Entry:
    """The entry of that label, or the only one of that preset."""
    found = [entry for entry in comparison.entries if name in (entry.label, entry.preset)]
    if len(found) == 1:
        return found[0]
    raise ConfigError(
        "several entries hold this preset" if found else "the comparison does not hold this preset",
        expected=f"one of {', '.join(entry.label for entry in found or comparison.entries)}",
        found=name,
    )


def _chosen(entry: Entry, trial: str | None) -> pd.Series:
    if trial is None:
        if entry.knee is None:
            raise ConfigError(f"{entry.label} has no knee", found="no trial keeps the constraints")
        return entry.knee
    names = pd.Series(
        [entry.trial_name(row) for row in entry.table.to_dict("records")], index=entry.table.index
    )
    called = (entry.table["trial_id"] == trial) | (names == trial)
    rows = entry.table[called & (entry.table["state"] == "complete")]
    if len(rows) > 1 and len(entry.runs) > 1:
        held = ", ".join(names[rows.index])
        raise ConfigError(f"several runs of {entry.label} hold this trial", expected=held, found=trial)
    if rows.empty:
        front = ", ".join(entry.table.loc[entry.table["on_front"], "trial_id"].head(6))
        raise ConfigError(f"{entry.label} has no completed trial of this name", expected=front, found=trial)
    return rows.iloc[0]


def _description(entry: Entry, row: pd.Series) -> str:
    what = "the knee of its front" if row["knee"] else "chosen from a sweep"
    text = f" Tuned: {what} (trial {row['trial_id']})."
    return entry.description[: LONGEST - len(text)] + text


def _sampling(space: Space, row: pd.Series) -> dict[str, Any]:
    """What the trial sampled with and no preset holds: jitter amplitudes, reverse-step formula by name."""
    found: dict[str, Any] = {
        n: float(row[n]) for n in space.names if n in SAMPLING_RANGES and n != "jitter_mm"
    }
    if "schedule" in found:
        found["schedule"] = SCHEDULES[round(found["schedule"])]
    return found


def _provenance(
    preset: Preset, comparison: Comparison, sweep: Sweep, row: pd.Series, space: Space
) -> dict[str, Any]:
    metrics = {g.name: float(row[g.name]) for g in comparison.goals}
    facts: Mapping[str, Any] = sweep.plan.facts
    return {
        "preset": preset.as_dict(),
        "trial": row["trial_id"],
        "sweep": sweep.folder.name,
        "sampler": sweep.plan.sampler,
        "seed": sweep.plan.seed,
        "jitter_mm": float(row["jitter_mm"]) if "jitter_mm" in space.names else 0.0,
        "sampling": _sampling(space, row),
        "metrics_on_validation": metrics,
        "constraints": [str(limit) for limit in sweep.plan.limits],
        "facts": dict(facts),
        "software": f"clinfuse {__version__}",
        "notice": RESEARCH_USE,
    }

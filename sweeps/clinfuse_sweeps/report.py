"""The comparison as a page: what can be had per preset, what it costs, and what the images look like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from clinfuse import RESEARCH_USE
from clinfuse.report.html import Section, data_url, facts, figure, page, table
from clinfuse_sweeps import figures
from clinfuse_sweeps.compare import Comparison, Entry, Sweep, position, trade
from clinfuse_sweeps.goals import Goal
from clinfuse_sweeps.importance import LEAST_TRIALS, importance
from clinfuse_sweeps.scatter_matrix import scatter_matrix
from clinfuse_sweeps.trials import front_of

PICTURES = "pictures"
ROWS_SHOWN = 25


def report(
    comparison: Comparison, sweeps: Sequence[Sweep], *, title: str, commands: Sequence[str] = ()
) -> str:
    """The self-contained page; works offline and without a script (the script adds choosing points).

    Args:
        comparison: what to show.
        sweeps: the folders it came from, for pictures and provenance.
        title: heading.
        commands: command lines that led here.
    """
    from clinfuse.report.html import command

    simulated = any(sweep.plan.facts.get("simulated") for sweep in sweeps)
    notice = RESEARCH_USE + (" Companion images: simulated CT." if simulated else "")
    parts = [
        Section("In short", _summary(comparison)),
        Section("Fronts", _fronts(comparison)),
        Section("What you give up", _trades(comparison)),
        Section("Images", _images(comparison)),
        Section("Trials on the fronts", _front_tables(comparison)),
        Section("Every metric against every other", _matrix(comparison)),
        Section("How the values go together", _parallel(comparison)),
        Section("Numbers", _numbers(comparison)),
        Section("What matters", _importance(comparison)),
        Section("How this came to be", _provenance(sweeps, comparison) + "".join(map(command, commands))),
    ]
    subtitle = "Choose a preset by looking at what it costs. " + _objective_words(comparison.goals)
    return page(title, [part for part in parts if part.html], notice=notice, subtitle=subtitle)


def _objective_words(goals: Sequence[Goal]) -> str:
    ways = {"max": "more is better", "min": "less is better"}
    return "Objectives: " + "; ".join(f"{g.label} ({ways[g.direction]})" for g in goals) + "."


def _summary(comparison: Comparison) -> str:
    items = []
    for entry in comparison.entries:
        words = escape(entry.description)
        items.append(
            f"<li><b>{escape(entry.label)}</b> — {words}<br>{escape(_verdict(entry, comparison.goals))}</li>"
        )
    cautions = "".join(f'<p class="caution">{escape(text)}</p>' for text in comparison.warnings)
    return f"<style>{_asset('chooser.css')}</style>{cautions}<ul>{''.join(items)}</ul>"


def _verdict(entry: Entry, goals: Sequence[Goal]) -> str:
    """Front size, the knee against the preset now, and where the preset stands, in words."""
    knee, own = entry.knee, entry.own
    done = int((entry.table["state"] == "complete").sum())
    text = (
        f"{done} of {len(entry.table)} trials completed, {int(entry.table['on_front'].sum())} on the front. "
    )
    if knee is None:
        return text + "No trial keeps the constraints."
    values = []
    for goal in goals:
        now = "" if own is None else f" (now {_number(own[goal.name])})"
        values.append(f"{goal.label} {_number(knee[goal.name])}{now}")
    return f"{text}Knee {entry.trial_name(knee)}: {', '.join(values)}. As it is, {position(entry, goals)}."


def _number(value: Any) -> str:
    value = float(value)
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 100 else f"{value:.3g}"


def _fronts(comparison: Comparison) -> str:
    goals = comparison.goals
    pairs = [(a, b) for i, a in enumerate(goals) for b in goals[i + 1 :]]
    html = ""
    for pair in pairs:
        caption = (
            f"{pair[0].label} against {pair[1].label}. Pale: every trial; cross: breaks a constraint; line: what the "
            "front reaches; star: knee, the best compromise; ring: the preset's values as they are."
        )
        if any(len(entry.runs) > 1 for entry in comparison.entries):
            caption += (
                " Band: from what every run attains to what the luckiest attains; dashed: half of them."
            )
        html += figure(figures.svg(figures.fronts_figure, comparison, pair), caption)
    if len(comparison.entries) > 1:
        caption = "The same, a panel per preset on common axes; grey: the other presets' fronts."
        html += figure(figures.svg(figures.small_multiples, comparison, pairs[0]), caption)
    return html


def _trades(comparison: Comparison) -> str:
    html = "<p>Δ is the gain against the preset's values as they are; below 0 something is given up.</p>"
    for entry in comparison.entries:
        rows = trade(entry, comparison.goals)
        if len(rows):
            html += table(rows, caption=entry.label)
    return html


def _images(comparison: Comparison) -> str:
    trials: dict[str, dict[str, Any]] = {}
    starts: list[str] = []
    for entry in comparison.entries:
        shown = entry.table[entry.table["on_front"] | (entry.table["origin"] == "preset")]
        for row in shown.to_dict("records"):
            trials[f"{entry.label}:{entry.trial_name(row)}"] = _choice(entry, row, comparison.goals)
        if entry.knee is not None:
            starts.append(f"{entry.label}:{entry.trial_name(entry.knee)}")
    if not any(trial["picture"] for trial in trials.values()) or not starts:
        return ""
    first = comparison.entries[0]
    own = f"{first.label}:{first.trial_name(first.own)}" if first.own is not None else starts[0]
    begin = (starts[0], starts[1]) if len(starts) > 1 else (own, starts[0])
    options = "".join(
        f'<option value="{escape(key)}">{escape(trial["name"])}</option>' for key, trial in trials.items()
    )
    panes = "".join(
        f'<div class="pane" data-start="{escape(key)}"><select aria-label="trial">{options}</select>'
        f'<img alt="" src="{trials[key]["picture"]}"><dl></dl></div>'
        for key in begin
    )
    data = json.dumps(trials).replace("<", "\\u003c")
    return (
        f"{_sources(comparison)}"
        "<p>Choose two trials, or click a point of the fronts above (with shift: left pane). The same slices, "
        "patient's right on the left.</p>"
        f'<div class="panes">{panes}</div>'
        f'<script type="application/json" id="trials">{data}</script><script>{_asset("chooser.js")}</script>'
    )


def _choice(entry: Entry, row: Mapping[Any, Any], goals: Sequence[Goal]) -> dict[str, Any]:
    what = "knee" if row["knee"] else "as it is" if row["origin"] == "preset" else "on the front"
    picture = Path(row["folder"]) / PICTURES / f"{row['trial_id']}.png"
    measured = [goal.name for goal in goals]
    measured += [name for name in ("lesion_dice", "seam") if name not in measured]
    pairs = [(name, row.get(name)) for name in (*measured, *entry.space.names)]
    return {
        "trial": entry.trial_name(row),
        "name": f"{entry.label} · {entry.trial_name(row)} · {what}",
        "picture": data_url(picture.read_bytes()) if picture.is_file() else "",
        "facts": [[name, _number(value)] for name, value in pairs if pd.notna(value)],
    }


def _sources(comparison: Comparison) -> str:
    folder = Path(str(comparison.entries[0].table["folder"].iloc[0])) / PICTURES
    found = [(name, folder / f"{name}.png") for name in ("anatomy", "companion")]
    pictures = [
        figure(path.read_bytes(), {"anatomy": "Anatomy image (MRI)", "companion": "Companion image"}[name])
        for name, path in found
        if path.is_file()
    ]
    return f'<div class="sources">{"".join(pictures)}</div>' if pictures else ""


def _asset(name: str) -> str:
    return resources.files("clinfuse_sweeps").joinpath(name).read_text(encoding="utf-8")


def _front_tables(comparison: Comparison) -> str:
    html = ""
    for entry in comparison.entries:
        front = front_of(entry.table, entry.preset, comparison.goals)
        if front.empty:
            html += f"<p>{escape(entry.label)}: no trial keeps the constraints.</p>"
            continue
        extra = [n for n in ("lesion_dice", "seam") if front[n].notna().any()]
        measured = [goal.name for goal in comparison.goals]
        columns = list(dict.fromkeys(["trial_id", *measured, *extra, *entry.space.names]))
        rows = front[columns].rename(columns={"trial_id": "trial"})
        rows["trial"] = [
            f"{_short_name(entry, row)}{' ★ knee' if row['knee'] else ''}" for row in front.to_dict("records")
        ]
        caption = entry.label
        if len(rows) > ROWS_SHOWN:
            caption += f" (the first {ROWS_SHOWN} of {len(rows)}; all are in the Parquet file)"
        html += table(rows.head(ROWS_SHOWN), caption=caption)
    return f'<div class="trials">{html}</div>'


def _short_name(entry: Entry, row: Mapping[Any, Any]) -> str:
    return entry.trial_name(row).replace(f"{entry.preset}-", "")


def _matrix(comparison: Comparison) -> str:
    drawn = figures.svg(scatter_matrix, comparison)
    return figure(
        drawn,
        "Objectives first, then the other metrics measured. Pale: every completed trial; full: on the front (a click "
        "shows its images). Diagonal: how many trials lie where.",
    )


def _parallel(comparison: Comparison) -> str:
    drawn = figures.svg(figures.parallel_coordinates, comparison)
    return figure(
        drawn,
        "Each line is a trial: left the values tried, right what came of them. Coloured: on the front; bold: knee; "
        "pale: the rest. Axes run from the smallest to the largest value seen; a gap is a value that was not searched.",
    )


def _numbers(comparison: Comparison) -> str:
    rows = comparison.numbers.rename(
        columns={"low": "interval from", "high": "to", "share": "of the union's"}
    )
    reference = ", ".join(
        f"{goal.label} {goal.loss(float(value)):.3f}"
        for goal, value in zip(comparison.goals, comparison.reference, strict=True)
    )
    html = table(rows, caption=f"Hypervolume against the common reference point ({reference}).", digits=5)
    labels = [entry.label for entry in comparison.entries]
    if len(labels) > 1:
        cover = pd.DataFrame(comparison.coverage, columns=labels)
        cover.insert(0, "covers", labels)
        html += table(
            cover, caption="C-metric: share of the column's front that the row's trials equal or dominate."
        )
    caption = "Hypervolume after each trial; a flat end says that more trials would bring little."
    return html + figure(figures.svg(figures.progress_figure, comparison), caption)


def _importance(comparison: Comparison) -> str:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for entry in comparison.entries:
        shares = {goal.label: importance(entry.table, entry.space, goal) for goal in comparison.goals}
        if any(shares.values()):
            found[entry.label] = {label: share for label, share in shares.items() if share}
    if not found:
        return f"<p>Fewer than {LEAST_TRIALS} completed trials per preset: too few to say which value matters.</p>"
    caption = (
        "Share of each objective's variance that a searched value explains (fANOVA, Hutter et al. 2014)."
    )
    return figure(figures.svg(figures.importance_figure, found), caption)


def _provenance(sweeps: Sequence[Sweep], comparison: Comparison) -> str:
    html = ""
    for sweep in sweeps:
        plan = sweep.plan
        pairs: dict[str, object] = {
            "sweep": sweep.folder.name,
            "sampler": f"{plan.sampler}, seed {plan.seed}, {plan.trials} trials per preset, {plan.slots} at a time",
            "constraints": ", ".join(map(str, plan.limits)) or "none",
            **{key: _fact(value) for key, value in plan.facts.items()},
        }
        html += facts(pairs)
    failed = pd.concat([e.table[e.table["state"] == "failed"] for e in comparison.entries])
    if len(failed):
        html += table(failed[["trial_id", "error"]].head(ROWS_SHOWN), caption=f"{len(failed)} failed trials")
    return html


def _fact(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)}: {', '.join(map(str, value[:12]))}" + (" …" if len(value) > 12 else "")
    return str(value)

"""Every measured metric against every other, all presets together: what goes with what, beyond the objectives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clinfuse.report.plots import INK
from clinfuse_sweeps.compare import Comparison
from clinfuse_sweeps.figures import MARKERS, POINT_ID, preset_colour
from clinfuse_sweeps.goals import GOALS, Goal

MOST = 6
PANEL_INCHES = 1.75


def shown_goals(comparison: Comparison) -> list[Goal]:
    """The objectives, then other metrics that vary over the trials; six at most."""
    table = pd.concat([entry.table for entry in comparison.entries])
    others = [goal for goal in GOALS.values() if goal not in comparison.goals]
    varied = [g for g in others if g.name in table and table[g.name].dropna().nunique() > 1]
    return [*comparison.goals, *varied][:MOST]


def scatter_matrix(comparison: Comparison) -> Figure:
    """Lower triangle: a panel per pair of metrics; diagonal: how each preset's trials are spread."""
    goals = shown_goals(comparison)
    count = len(goals)
    figure = Figure(figsize=(PANEL_INCHES * count + 1.2, PANEL_INCHES * count + 0.4), layout="constrained")
    grid = figure.subplots(count, count, squeeze=False)
    for row, y in enumerate(goals):
        for column, x in enumerate(goals):
            axes = grid[row, column]
            if column > row:
                axes.set_visible(False)
                continue
            _spread(axes, comparison, x) if row == column else _pair(axes, comparison, x, y)
            _edges(axes, x, y, bottom=row == count - 1, left=column == 0 and row > 0)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", fontsize=8.5)
    return figure


def _pair(axes: Any, comparison: Comparison, x: Goal, y: Goal) -> None:
    """Trials pale, the front's points as single artists (a page finds them by their id)."""
    for number, entry in enumerate(comparison.entries):
        table = entry.table[entry.table["state"] == "complete"]
        rest, front = table[~table["on_front"]], table[table["on_front"]]
        style: dict[str, Any] = {"color": preset_colour(number), "linestyle": "none"}
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(rest[x.name], rest[y.name], marker, markersize=2.5, alpha=0.3, **style)
        for row in front.to_dict("records"):
            (point,) = axes.plot(row[x.name], row[y.name], marker, markersize=4.5, **style)
            point.set_gid(f"{x.name}-{y.name}-{POINT_ID}{entry.label}:{entry.trial_name(row)}")


def _spread(axes: Any, comparison: Comparison, goal: Goal) -> None:
    """Histogram outlines, a line per preset."""
    tables = [entry.table.loc[entry.table["state"] == "complete", goal.name] for entry in comparison.entries]
    everything = pd.concat(tables).dropna()
    if everything.empty:
        return
    edges = np.histogram_bin_edges(everything, bins=12)
    for number, (entry, values) in enumerate(zip(comparison.entries, tables, strict=True)):
        colour = preset_colour(number)
        axes.hist(
            values.dropna(), bins=edges, histtype="step", color=colour, linewidth=1.4, label=entry.label
        )
    axes.set_yticks([])


def _edges(axes: Any, x: Goal, y: Goal, *, bottom: bool, left: bool) -> None:
    """Names and numbers only at the matrix's edge."""
    axes.xaxis.set_major_locator(MaxNLocator(3))
    if left:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylabel(_two_lines(y), fontsize=7)
    else:
        axes.set_yticklabels([])
    if bottom:
        axes.set_xlabel(_two_lines(x), fontsize=7)
    else:
        axes.set_xticklabels([])
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.15, color=INK)


def _two_lines(goal: Goal) -> str:
    name, arrow, better = goal.axis.partition(" →")
    return f"{name}\n{arrow.strip()}{better}"

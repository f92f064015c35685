"""Pictures of fronts: presets in objective space, parallel coordinates, progress, importance; SVG or PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clinfuse.report.plots import COLOURS, INK, STYLE, to_svg
from clinfuse_sweeps.compare import Comparison, Entry
from clinfuse_sweeps.fronts import attainment, hypervolume, staircase
from clinfuse_sweeps.goals import Goal, losses

MARKERS = "osD^vPX*"
POINT_ID = "trial:"  # an SVG element with this in its id is one trial; the page's script finds it so
PNG_STYLE: Any = {key: ("#1b1f24" if value == INK else value) for key, value in STYLE.items()}


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def fronts_figure(comparison: Comparison, pair: tuple[Goal, Goal] | None = None) -> Figure:
    """All presets on common axes: trials pale, front as a staircase, knee starred, the preset's own place ringed.

    Args:
        comparison: what to draw.
        pair: the two goals on x and y; default the first two.
    """
    x, y = pair or (comparison.goals[0], comparison.goals[1])
    figure = Figure(figsize=(9.2, 5.4), layout="constrained")
    axes = figure.add_subplot()
    for number, entry in enumerate(comparison.entries):
        draw_entry(axes, entry, x, y, number)
    _decorate(axes, x, y)
    _frame(axes, comparison, x, y)
    axes.legend(handles=_legend(comparison), fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def small_multiples(comparison: Comparison, pair: tuple[Goal, Goal] | None = None) -> Figure:
    """A panel per preset on common axes; the other presets' fronts stay visible in grey."""
    x, y = pair or (comparison.goals[0], comparison.goals[1])
    count = len(comparison.entries)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.9 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, entry in enumerate(comparison.entries):
        axes = grid[number]
        for other in comparison.entries:
            if other is not entry:
                _stairs(axes, other, x, y, colour="#8a8a8a", alpha=0.5, width=1.0)
        draw_entry(axes, entry, x, y, number)
        _decorate(axes, x, y)
        _frame(axes, comparison, x, y)
        axes.set_title(entry.label, color=preset_colour(number))
        if number % columns:
            axes.set_ylabel("")
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure


def draw_entry(axes: Any, entry: Entry, x: Goal, y: Goal, number: int) -> None:
    """One preset's trials, front, knee and own place; front points are single artists so a page can find them."""
    colour, marker = preset_colour(number), MARKERS[number % len(MARKERS)]
    table = entry.table[entry.table["state"] == "complete"]
    rest = table[~table["on_front"]]
    kept = rest[rest["feasible"]]
    broken = rest[~rest["feasible"]]
    axes.plot(kept[x.name], kept[y.name], marker, color=colour, alpha=0.3, markersize=4, linestyle="none")
    axes.plot(broken[x.name], broken[y.name], "x", color=colour, alpha=0.35, markersize=4, linestyle="none")
    if len(entry.runs) > 1:
        _band(axes, entry, x, y, colour)
    _stairs(axes, entry, x, y, colour=colour, alpha=0.9, width=1.6)
    for row in table[table["on_front"]].to_dict("records"):
        (point,) = axes.plot(row[x.name], row[y.name], marker, color=colour, markersize=6.5)
        point.set_gid(f"{POINT_ID}{entry.label}:{entry.trial_name(row)}")
    own, knee = entry.own, entry.knee
    if own is not None:
        (ring,) = axes.plot(own[x.name], own[y.name], "o", mfc="none", mec=colour, mew=1.6, markersize=13)
        ring.set_gid(f"own-{POINT_ID}{entry.label}:{entry.trial_name(own)}")
    if knee is not None:
        (star,) = axes.plot(knee[x.name], knee[y.name], "*", color=colour, mec=INK, mew=0.8, markersize=16)
        star.set_gid(f"knee-{POINT_ID}{entry.label}:{entry.trial_name(knee)}")


def _legend(comparison: Comparison) -> list[Line2D]:
    """A line per preset, then what the marks mean, in ink."""
    ink: dict[str, Any] = {"color": INK, "linestyle": "none"}
    presets = [
        Line2D(
            [], [], color=preset_colour(n), marker=MARKERS[n % len(MARKERS)], linewidth=1.6, label=entry.label
        )
        for n, entry in enumerate(comparison.entries)
    ]
    marks = [
        Line2D([], [], marker="*", markersize=12, label="knee: best compromise", **ink),
        Line2D([], [], marker="o", markersize=11, fillstyle="none", label="preset as it is now", **ink),
        Line2D([], [], marker="o", markersize=4, alpha=0.35, label="other trials", **ink),
    ]
    if any(
        (entry.table["state"].eq("complete") & ~entry.table["feasible"]).any() for entry in comparison.entries
    ):
        marks.append(Line2D([], [], marker="x", markersize=5, alpha=0.5, label="breaks a constraint", **ink))
    return [*presets, *marks]


def _frame(axes: Any, comparison: Comparison, x: Goal, y: Goal) -> None:
    """Show all fronts, the presets' own places and the better nine tenths of the rest; say what lies outside."""
    tables = [entry.table[entry.table["state"] == "complete"] for entry in comparison.entries]
    table = pd.concat(tables)
    telling = table[table["on_front"] | (table["origin"] == "preset")]
    outside = pd.Series(False, index=table.index)
    for goal, name in ((x, "x"), (y, "y")):
        worse = table[goal.name].quantile(0.1 if goal.direction == "max" else 0.9)
        edges = [telling[goal.name].min(), telling[goal.name].max(), worse, table[goal.name].median()]
        low, high = min(edges), max(edges)
        margin = 0.08 * (high - low) or 0.01
        limits = (low - margin, high + margin)
        outside |= (table[goal.name] < limits[0]) | (table[goal.name] > limits[1])
        getattr(axes, f"set_{name}lim")(*(limits if goal.direction == "max" else limits[::-1]))
    if outside.any():
        note = f"{int(outside.sum())} poor trials lie outside"
        axes.text(0.01, 0.01, note, transform=axes.transAxes, fontsize=8, va="bottom", alpha=0.8)


def _stairs(axes: Any, entry: Entry, x: Goal, y: Goal, *, colour: str, alpha: float, width: float) -> None:
    front = entry.table[entry.table["on_front"]]
    corners = staircase(losses(front.to_dict("records"), (x, y)))
    if len(corners):
        signs = [-1 if goal.direction == "max" else 1 for goal in (x, y)]
        axes.plot(*(corners * signs).T, color=colour, alpha=alpha, linewidth=width)


def _band(axes: Any, entry: Entry, x: Goal, y: Goal, colour: str) -> None:
    """From what every run attains to what the luckiest run attains; dashed: what half of them attain."""
    runs = [losses(run[run["feasible"]].to_dict("records"), (x, y)) for run in entry.runs]
    signs = np.array([-1 if goal.direction == "max" else 1 for goal in (x, y)])
    corners = [staircase(attainment(runs, level)) * signs for level in (1.0, 1 / len(runs))]
    if all(len(c) for c in corners):
        outline = np.concatenate([corners[0], corners[1][::-1]])
        axes.fill(outline[:, 0], outline[:, 1], color=colour, alpha=0.12, linewidth=0)
        middle = staircase(attainment(runs, 0.5)) * signs
        axes.plot(middle[:, 0], middle[:, 1], color=colour, linewidth=1.0, linestyle="--", alpha=0.8)


def _decorate(axes: Any, x: Goal, y: Goal) -> None:
    axes.set_xlabel(x.axis)
    axes.set_ylabel(y.axis)
    axes.grid(alpha=0.2, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))


def preset_colour(number: int) -> str:
    """The colour of the comparison's preset of that number."""
    return COLOURS[number % len(COLOURS)]


def parallel_coordinates(comparison: Comparison) -> Figure:
    """Searched values and goals of every feasible trial, an axis each; the front in colour, the knee bold.

    Values run from the smallest to the largest seen (logarithmically if they span more than a decade). A trial's
    line has a gap where its preset's search did not have the value.
    """
    names = [*comparison.params, *(goal.name for goal in comparison.goals)]
    tables = [entry.table[entry.table["feasible"]] for entry in comparison.entries]
    everything = pd.concat(tables)
    names = [name for name in names if everything[name].nunique() > 1]
    scaled = {name: _scaler(everything[name]) for name in names}
    figure = Figure(figsize=(max(8.0, 1.05 * len(names)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (entry, table) in enumerate(zip(comparison.entries, tables, strict=True)):
        colour = preset_colour(number)
        shade = float(np.clip(25 / max(int(table["on_front"].sum()), 1), 0.12, 0.7))
        for row in table.sort_values(["knee", "on_front"]).to_dict("records"):
            heights = [scaled[name](row.get(name, np.nan)) for name in names]
            marker = "." if np.isnan(heights).any() else None  # a value between two gaps has no line
            width, alpha = (
                (2.8, 1.0) if row["knee"] else (1.3, shade) if row["on_front"] else (0.6, 0.5 * shade)
            )
            axes.plot(heights, color=colour, linewidth=width, alpha=alpha, marker=marker)
        axes.plot([], [], color=colour, linewidth=2, label=entry.label)
    for place, name in enumerate(names):
        axes.axvline(place, color=INK, linewidth=0.7, alpha=0.5)
        low, high = float(everything[name].min()), float(everything[name].max())
        for height, value in ((-0.06, low), (1.06, high)):
            axes.text(place, height, f"{value:.3g}", ha="center", va="center", fontsize=8)
    labels = {goal.name: goal.label.replace(" ", "\n", 1) for goal in comparison.goals}
    axes.set_xticks(range(len(names)), [labels.get(name, name) for name in names])
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set(ylim=(-0.12, 1.12), xlim=(-0.3, len(names) - 0.7), yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(fontsize=8.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    return figure


def _scaler(values: pd.Series) -> Any:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 10:
        return lambda v: np.log(v / low) / np.log(high / low)
    return lambda v: (v - low) / (high - low)


def progress_figure(comparison: Comparison) -> Figure:
    """Hypervolume after each trial, a line per run: has the search come to rest?"""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, entry in enumerate(comparison.entries):
        for index, run in enumerate(entry.runs):
            steps, volumes = growth(run, comparison)
            label = entry.label if index == 0 else None
            axes.step(steps, volumes, where="post", color=preset_colour(number), linewidth=1.6, label=label)
    axes.set(xlabel="trials", ylabel="hypervolume", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.2, color=INK)
    axes.legend(fontsize=8.5)
    return figure


def growth(run: pd.DataFrame, comparison: Comparison, points: int = 60) -> tuple[list[int], list[float]]:
    """Trials so far and their hypervolume, at most `points` times."""
    values = losses(run.to_dict("records"), comparison.goals)
    values[~run["feasible"].to_numpy(dtype=bool)] = np.nan
    steps = sorted({round(s) for s in np.linspace(1, len(run), min(points, len(run)))})
    return steps, [hypervolume(values[:step], comparison.reference) for step in steps]


def importance_figure(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Bars per preset: how much each searched value explains of each goal.

    Args:
        found: preset label → goal label → value name → share.
    """
    goals = list(dict.fromkeys(goal for shares in found.values() for goal in shares))
    figure = Figure(figsize=(3.6 * len(found) + 0.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False, sharex=True)[0]
    for axes, (label, by_goal) in zip(grid, found.items(), strict=True):
        names = sorted(next(iter(by_goal.values())), key=lambda n: sum(s.get(n, 0) for s in by_goal.values()))
        height = 0.8 / len(goals)
        for index, goal in enumerate(goals):
            places = np.arange(len(names)) + (0.5 * (len(goals) - 1) - index) * height
            shares = [by_goal.get(goal, {}).get(name, 0.0) for name in names]
            axes.barh(places, shares, height=height, color=preset_colour(index + 4), label=goal)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(label)
        axes.set_xlabel("share of variance explained")
    grid[0].legend(fontsize=8, loc="lower right")
    return figure


def svg(draw: Any, *arguments: Any) -> str:
    """Draw in the page's ink and return inline SVG."""
    with matplotlib.rc_context(STYLE):
        return to_svg(draw(*arguments))


def png(draw: Any, *arguments: Any) -> bytes:
    """Draw in dark ink and return PNG bytes on white."""
    with matplotlib.rc_context(PNG_STYLE):
        return to_png(draw(*arguments))

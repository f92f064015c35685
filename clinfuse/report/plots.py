"""Plots as SVG in the page's own ink, legible on light and dark: curves, bars, reliability."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

INK = "#010203"  # replaced by the page's text colour
COLOURS = ("#4c8fdb", "#e08a1e", "#2fa37c", "#d65a4e", "#a678cc", "#8a8a8a", "#b59a2c", "#3fb3c4")
STYLE: Any = {  # matplotlib types the keys as literals
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a curves figure: values over steps, with a name; curves of one `panel` share axes."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    panel: str = ""


def to_svg(figure: Figure) -> str:
    """The figure as inline SVG: transparent ground, and `INK` turned into the page's text colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Clip paths and markers are named; two figures in one page must not share the names.
    salt = hashlib.sha256(text.encode()).hexdigest()[:8]
    for before in ('id="', "url(#", 'xlink:href="#'):
        text = text.replace(before, f"{before}{salt}-")
    return text


def loss_curves(curves: Sequence[Curve], *, log: bool = False, columns: int = 3) -> str:
    """Small multiples of training curves, a panel for each `Curve.panel`, as SVG.

    Curves with more than 40 points are drawn pale with a running mean (an eighth of the curve) on top.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    columns = max(1, min(columns, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 2.5 * rows), layout="constrained")
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            for number, curve in enumerate(c for c in curves if c.panel == panel):
                _line(axes, curve, COLOURS[number % len(COLOURS)])
            axes.set_title(panel)
            axes.set_xlabel("step")
            if log:
                axes.set_yscale("log")
            if any(c.name for c in curves if c.panel == panel):
                axes.legend(fontsize=8)
            axes.grid(alpha=0.2, color=INK)
        return to_svg(figure)


def _line(axes: Any, curve: Curve, colour: str) -> None:
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    if len(values) <= 40:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=curve.name)
        return
    window = max(3, len(values) // 8) | 1
    half = window // 2
    padded = np.pad(values, half, mode="reflect")
    mean = np.convolve(padded, np.ones(window) / window, mode="valid")
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=curve.name)


def reliability_diagram(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    counts: Sequence[float] | None = None,
    xlabel: str = "predicted probability of error",
    ylabel: str = "observed frequency of error",
) -> str:
    """Predicted against observed, a line per name (before and after calibration); the diagonal is perfect.

    Args:
        curves: name → (predicted, observed), both in [0, 1], one pair per bin.
        counts: share of voxels per bin of the first curve, drawn as bars below.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="perfect")
        for number, (name, (predicted, observed)) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(predicted, observed, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
        if counts is not None and curves:
            predicted = next(iter(curves.values()))[0]
            share = np.asarray(counts, float) / max(float(np.sum(counts)), 1e-12)
            axes.bar(
                predicted, 0.2 * share / max(share.max(), 1e-12), width=0.03, color=COLOURS[5], alpha=0.5
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel, aspect="equal")
        axes.legend(fontsize=8, loc="upper left")
        return to_svg(figure)


def latency_bars(
    seconds: Mapping[str, Sequence[float]], *, xlabel: str = "seconds (median; dots: each run)"
) -> str:
    """Horizontal bars on a logarithmic axis: the median of each name's timings, each run as a dot."""
    names = list(seconds)
    medians = [float(np.median(seconds[name])) for name in names]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.45 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(names))[::-1]
        left = min(min(v) for v in seconds.values()) / 3
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
        axes.barh(places, np.asarray(medians) - left, left=left, height=0.55, color=colours, alpha=0.8)
        for place, name, median in zip(places, names, medians, strict=True):
            axes.plot(seconds[name], [place] * len(seconds[name]), "o", color=INK, markersize=2.5)
            axes.annotate(
                f"{median:.3g} s",
                (max(seconds[name]), place),
                (7, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_xscale("log")
        axes.set_xlim(left, max(max(v) for v in seconds.values()) * 2.5)
        axes.set_yticks(places, names)
        axes.set_xlabel(xlabel)
        return to_svg(figure)


def step_bars(
    seconds: Mapping[str, float], memory: Sequence[tuple[float, float]] = (), *, limit_gb: float | None = None
) -> str:
    """A job's steps on a time axis, and below it the memory in use, as SVG.

    Args:
        seconds: duration of each step, in order.
        memory: (seconds since the start, gigabytes) samples.
        limit_gb: a line to stay under.
    """
    with matplotlib.rc_context(STYLE):
        rows = 2 if memory else 1
        height = 0.9 + 0.28 * len(seconds)
        figure = Figure(figsize=(8.5, height + 1.9 * (rows - 1)), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[height, 1.9][:rows])[:, 0]
        start = 0.0
        for number, duration in enumerate(seconds.values()):
            axes[0].barh(-number, duration, left=start, height=0.6, color=COLOURS[number % len(COLOURS)])
            axes[0].text(start + duration, -number, f" {duration:.1f} s", va="center", fontsize=8.5)
            start += duration
        axes[0].set_yticks([-n for n in range(len(seconds))], list(seconds))
        axes[0].set_xlim(0, start * 1.1 or 1.0)
        if memory:
            axes[1].plot(*zip(*memory, strict=True), color=COLOURS[0], linewidth=1.5)
            axes[1].set_ylabel("memory (GB)")
            axes[1].set_ylim(0, max(m for _, m in memory) * 1.15)
            if limit_gb is not None:
                axes[1].axhline(limit_gb, color=COLOURS[3], linewidth=1, linestyle="--", label="limit")
                axes[1].set_ylim(0, max(limit_gb, *(m for _, m in memory)) * 1.1)
                axes[1].legend(fontsize=8)
        axes[-1].set_xlabel("seconds since the start")
        return to_svg(figure)

"""Summaries as tables to read: Markdown for the terminal and the paper, HTML for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import pandas as pd

from clinfuse import RESEARCH_USE
from clinfuse.evaluation.rows import LOWER_IS_BETTER, TWO_SIDED, UNCERTAINTY

MOST_LINES = 8
GOAL_NOTE = "goal: stated for patients not seen in training. ✓: the mean over cases reaches it."


def grouped(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary in parts that fit a page: clinical, uncertainty and whole-image metrics, in this order."""
    doubtful = summary["metric"].isin(UNCERTAINTY)
    whole = (summary["roi"] == "whole") & ~doubtful & (summary["metric"] != "outside")
    parts = {
        "Clinical: brain against MRI, bone against CT, lesion, borders": summary[~doubtful & ~whole],
        "Uncertainty": regions_as_lines(summary[doubtful]),
        "Whole image, conventions of the fusion field": summary[whole],
    }
    return {title: part for title, part in parts.items() if len(part)}


def regions_as_lines(summary: pd.DataFrame) -> pd.DataFrame:
    """A part in which a line is a method and region: for tables of few methods and many regions."""
    return summary.assign(method=summary["method"].astype(str) + ": " + summary["roi"].astype(str), roi="")


def to_markdown(summary: pd.DataFrame, *, intervals: bool = True) -> str:
    """Methods as lines, metric and region as columns, mean [low, high]; notes on what is missing below.

    Args:
        summary: from `summarise`, or of `with_goals`: then goals are the first line and ✓ marks what reaches them.
        intervals: whether to show the confidence intervals.
    """
    parts = grouped(summary)
    titled = len(parts) > 1
    texts = [
        (f"### {title}\n\n" if titled else "") + _markdown_table(part, intervals)
        for title, part in parts.items()
    ]
    return "\n\n".join([*texts, "\n".join(notes(summary))]) + "\n"


def to_html(summary: pd.DataFrame, *, caption: str = "") -> str:
    """The same tables as an HTML fragment, best mean of each column in bold, with the same notes."""
    from clinfuse.report.html import metric_table

    parts = grouped(summary.assign(method=_method_labels(summary)))
    tables = []
    for title, part in parts.items():
        above = ". ".join(text for text in (caption, title if len(parts) > 1 else "") if text)
        shown = metric_table(part, caption=above, lower_is_better=LOWER_IS_BETTER)
        if title == "Uncertainty" and part["method"].nunique() > MOST_LINES:
            shown = f"<details><summary>{escape(title)}</summary>{shown}</details>"
        tables.append(shown)
    return "".join(tables) + "".join(f"<p><small>{escape(note)}</small></p>" for note in notes(summary))


def _markdown_table(summary: pd.DataFrame, intervals: bool) -> str:
    pairs = list(dict.fromkeys(zip(summary["metric"], summary["roi"], strict=True)))
    labels = _method_labels(summary)
    units = dict(zip(zip(summary["metric"], summary["roi"], strict=True), summary["unit"], strict=True))
    cells = {(label, r["metric"], r["roi"]): r for label, r in zip(labels, _records(summary), strict=True)}
    head = ["method", *(_column_title(m, r, units[m, r]) for m, r in pairs)]
    lines = [_line(head), _line(["---"] + ["---:"] * len(pairs))]
    if any(goals := goals_of(summary, pairs)):
        lines.append(_line(["*goal*", *goals]))
    for label in dict.fromkeys(labels):
        lines.append(_line([label, *(_cell(cells.get((label, *pair)), intervals) for pair in pairs)]))
    return "\n".join(lines)


def goals_of(summary: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The goal of each (metric, region), "" where there is none or the summary is without goals."""
    if "goal" not in summary:
        return [""] * len(pairs)
    stated = summary[summary["goal"] != ""]
    goals = dict(zip(zip(stated["metric"], stated["roi"], strict=True), stated["goal"], strict=True))
    return [goals.get(pair, "") for pair in pairs]


def notes(summary: pd.DataFrame) -> list[str]:
    """What the reader must know beside the means: counts, what is empty or failed, what it may be used for."""
    lines = []
    counts = summary.loc[summary["n"] > 0, "n"]
    if len(counts):
        span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        lines.append(f"Mean over {span} cases with 95 % bootstrap intervals over cases.")
    if "goal" in summary and summary["goal"].ne("").any():
        lines.append(GOAL_NOTE)
    for kind, meaning in (("empty", "region absent, kept out of the mean"), ("failed", "not measured")):
        hit = summary[summary[kind] > 0]
        if len(hit):
            named = dict.fromkeys(
                f"{m}/{r}: {k}" for m, r, k in zip(hit["metric"], hit["roi"], hit[kind], strict=True)
            )
            lines.append(f"Cases {kind} ({meaning}): {', '.join(named)}.")
    return [*lines, RESEARCH_USE]


def _method_labels(summary: pd.DataFrame) -> list[str]:
    """The method's name, with the preset where a table holds several."""
    methods, presets = summary["method"].astype(str), summary["preset"].astype(str)
    if presets.nunique() <= 1:
        return list(methods)
    return [f"{m} ({p})" for m, p in zip(methods, presets, strict=True)]


def _records(summary: pd.DataFrame) -> list[dict[str, object]]:
    return [{str(k): v for k, v in record.items()} for record in summary.to_dict("records")]


def _column_title(metric: str, roi: str, unit: str) -> str:
    arrow = "" if metric in TWO_SIDED else " ↓" if metric in LOWER_IS_BETTER else " ↑"
    return f"{metric}{f' {roi}' if roi else ''}{'' if unit == '1' else f' ({unit})'}{arrow}"


def _cell(record: dict[str, object] | None, intervals: bool) -> str:
    if record is None:
        return "–"
    mean, low, high = (float(str(record[k])) for k in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return "failed" if int(str(record["failed"])) else "empty"
    text = number(mean) + (" ✓" if record.get("reached") else "")
    return f"{text} [{number(low)}, {number(high)}]" if intervals and math.isfinite(low + high) else text


def number(value: float) -> str:
    """Three significant decimals below ten, fewer above: .944, 3.76, 31.5, 168."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"

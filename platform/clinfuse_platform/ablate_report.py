"""What the ablations leave: metrics.parquet, summary.parquet, table.md and a page with a figure per ablation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clinfuse import RESEARCH_USE
from clinfuse_platform.ablations import Ablation
from clinfuse_platform.storage import write_atomic, write_table
from clinfuse_platform.variants import Variant

COSTS = ["method", "what", "seconds per case", "fastest", "cases"]
DOUBT = ("ece", "ause_ratio", "spearman")
"""Of the uncertainty: levels are compared by it, too, as some change nothing else."""
PANELS = (("ssim", "brain"), ("ssim", "bone"), ("dice", "lesion"), ("hd95", "lesion"), ("seam", "borders"))


def write_ablations(
    rows: pd.DataFrame, ablations: Sequence[Ablation], variants: Sequence[Variant], out: Path
) -> dict[str, Path]:
    """Write all files and say where they are.

    Args:
        rows: clinfuse.evaluation rows whose method is "ablation: level".
        ablations: in the order of the page.
        variants: of all of them, labelled as in the rows.
        out: folder.
    """
    from clinfuse.evaluation import summarise, to_html, to_markdown
    from clinfuse.report import Section, figure, page, table
    from clinfuse_platform.evaluate_costs import cost_table
    from clinfuse_platform.evaluate_report import failures, plain_markdown

    names = ("metrics.parquet", "summary.parquet", "table.md", "report.html")
    files = {Path(name).stem: out / name for name in names}
    parts = rows["method"].str.partition(": ")
    rows = rows.assign(ablation=parts[0], level=parts[2])
    summary = merged_presets(summarise(rows))
    write_table(files["metrics"], rows)
    write_table(files["summary"], summary)
    sections, text = [], []
    for ablation in ablations:
        prefix = f"{ablation.name}: "
        part = summary[summary["method"].str.startswith(prefix)]
        costs = cost_table(rows, [variant for variant in variants if variant.label.startswith(prefix)])[COSTS]
        sentence, tests = against_first(rows[rows["ablation"] == ablation.name])
        tables = [to_markdown(part).strip(), sentence, plain_markdown(tests) if len(tests) else ""]
        told = [f"## {ablation.name}", ablation.question, *tables, plain_markdown(costs)]
        text.append("\n\n".join(filter(None, told)) + "\n")
        caption = f"{ablation.question} Mean over cases with 95 % bootstrap intervals."
        body = figure(ablation_figure(part, ablation), caption) + to_html(part)
        body += f"<p>{escape(sentence)}</p>" + (table(tests) if len(tests) else "") + table(costs)
        if ablation.name == "jitter":
            body += sensitivity(part)
        sections.append(Section(ablation.name.capitalize(), body))
    write_atomic(files["table"], "\n".join([*text, RESEARCH_USE, ""]))
    sections.extend(failures(rows))
    write_atomic(files["report"], page("Ablations", sections))
    return files


def against_first(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Which levels of one ablation differ from its first by more than chance: a sentence, and a table of them.

    Args:
        rows: of the ablation.
    """
    from clinfuse.evaluation import decided, explanation, paired_tests
    from clinfuse.evaluation.verdicts import COMPARED

    chosen = rows[rows["metric"].isin((*COMPARED, *DOUBT))]
    if chosen["method"].nunique() < 2:
        return "There is nothing to compare.", pd.DataFrame()
    first = str(chosen["method"].iloc[0])
    tests = paired_tests(chosen, reference=first)
    found = decided(tests)
    told = "What differs by more than chance" if len(found) else "Nothing differs by more than chance"
    return f"{told} from {first}: {explanation(tests)}", found


def merged_presets(summary: pd.DataFrame) -> pd.DataFrame:
    """One preset name in the whole table: changed weights are told by the level, not by the preset."""
    return summary.assign(preset=summary["preset"].iloc[0]) if len(summary) else summary


def ablation_figure(summary: pd.DataFrame, ablation: Ablation) -> str:
    """Small multiples, one per clinical metric, level along the x axis; SVG."""
    from matplotlib.figure import Figure

    from clinfuse.report import to_svg

    shown = [panel for panel in PANELS if len(lines_of(summary, *panel))]
    drawing = Figure(figsize=(2.5 * max(1, len(shown)), 2.7), layout="constrained")
    for number, (metric, roi) in enumerate(shown):
        axes = drawing.add_subplot(1, len(shown), number + 1)
        draw_panel(axes, lines_of(summary, metric, roi), f"{metric} {roi}", ordered=ablation.ordered)
    return to_svg(drawing)


def lines_of(summary: pd.DataFrame, metric: str, roi: str) -> pd.DataFrame:
    """The summary's lines of one metric, in the order of levels, those without a mean left out."""
    part = summary[(summary["metric"] == metric) & (summary["roi"] == roi)]
    return part[np.isfinite(part["mean"].astype(float))]


def draw_panel(axes: Any, lines: pd.DataFrame, title: str, *, ordered: bool) -> None:
    """Means with intervals: joined by a line where levels are ordered, else dots."""
    levels = [str(method).split(": ", 1)[1] for method in lines["method"]]
    mean = lines["mean"].to_numpy(float)
    low = np.where(np.isfinite(lines["low"]), lines["low"], mean)
    high = np.where(np.isfinite(lines["high"]), lines["high"], mean)
    places = np.arange(len(levels))
    error = np.abs(np.stack([mean - low, high - mean]))
    axes.errorbar(places, mean, yerr=error, marker="o", linestyle="-" if ordered else "none", capsize=2)
    axes.set_xticks(places, levels, rotation=0 if ordered else 60, ha="center" if ordered else "right")
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.15)


def sensitivity(summary: pd.DataFrame) -> str:
    """Misregistration sensitivity: mean of each metric over the jitter range minus its value without, as HTML."""
    from clinfuse.report import table

    found = []
    for (metric, roi), lines in summary.groupby(["metric", "roi"], sort=False):
        amplitudes = [float(str(method).split(": ", 1)[1]) for method in lines["method"]]
        area = jitter_area(amplitudes, lines["mean"].to_numpy(float).tolist())
        if np.isfinite(area):
            found.append({"metric": metric, "roi": roi, "change over 0 to 4 mm": round(area, 4)})
    return table(found, caption="Sensitivity to misregistration: mean change over the range (area ÷ width)")


def jitter_area(amplitudes_mm: Sequence[float], values: Sequence[float]) -> float:
    """Area between the curve and its value at the smallest amplitude, divided by the range's width.

    Returns:
        Change in the metric's own unit, by trapezia; NaN with fewer than two finite points.
    """
    x, y = np.asarray(amplitudes_mm, float), np.asarray(values, float)
    fine = np.isfinite(y)
    x, y = x[fine], y[fine]
    if len(x) < 2:
        return float("nan")
    order = np.argsort(x)
    x, y = x[order], y[order]
    return float(np.trapezoid(y - y[0], x) / (x[-1] - x[0]))

"""Sensitivity to misregistration: every method's ROI metrics against the amplitude by which the companion is moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clinfuse.errors import ConfigError
from clinfuse_platform.ablate_report import PANELS, jitter_area
from clinfuse_platform.storage import write_table
from clinfuse_platform.variants import Variant

if TYPE_CHECKING:
    from clinfuse.report import Section
    from clinfuse_platform.evaluate import Job

MOST_MM = 20.0
MARKERS = "os^vDPX<>*"


def amplitudes_of(text: str) -> tuple[float, ...]:
    """The amplitudes in "0,1,2,4", ascending and with 0, or none of "".

    Raises:
        ConfigError: not numbers between 0 and 20 mm.
    """
    try:
        values = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        values = [float("nan")]
    if not values:
        return ()
    if not all(0 <= value <= MOST_MM for value in values) or values[-1] == 0:
        raise ConfigError(
            "not amplitudes of misregistration",
            expected=f"two or more numbers from 0 to {MOST_MM:g} mm, e.g. 0,1,2,4",
            found=repr(text),
        )
    return tuple(sorted({0.0, *values}))


def shifted(variants: Sequence[Variant], amplitudes: Sequence[float]) -> list[Variant]:
    """Every method that can fuse anew at every amplitude; a folder of finished results cannot."""
    from clinfuse_platform.evaluate_costs import learned_facts

    able = [v for v in variants if v.model or "=" not in v.baseline or learned_facts(v)]
    return [
        replace(v, jitter_mm=mm, label=f"{v.label} @ {mm:g}", samples=1, jitters=0)
        for v in able
        for mm in amplitudes
    ]


def split_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the amplitude taken out of the label into a column of its own, mm."""
    parts = rows["method"].str.rpartition(" @ ")
    return rows.assign(method=parts[0], amplitude_mm=parts[2].astype(float))


def sensitivities(rows: pd.DataFrame) -> pd.DataFrame:
    """Per method, metric and region: mean change over the amplitudes, with its interval over cases.

    Args:
        rows: metric rows with amplitude_mm.

    Returns:
        method, metric, roi, unit, at 0 mm, at the largest amplitude, area (mean of metric − metric at 0 mm over the
        range, by trapezia, in the metric's unit), low, high (95 % bootstrap over cases), n.
    """
    from clinfuse.evaluation import bootstrap_interval

    good = rows[rows["status"] == "ok"]
    lines = []
    for (method, metric, roi), group in good.groupby(["method", "metric", "roi"], sort=False):
        table = group.pivot(index="case_id", columns="amplitude_mm", values="value").astype(float).dropna()
        if table.shape[1] < 2 or table.empty:
            continue
        areas = np.array(
            [jitter_area([float(x) for x in table.columns], v) for v in table.to_numpy().tolist()]
        )
        low, high = bootstrap_interval(areas)
        ends = table.mean()
        lines.append(
            {
                "method": method,
                "metric": metric,
                "roi": roi,
                "unit": group["unit"].iloc[0],
                "at 0 mm": float(ends.iloc[0]),
                f"at {table.columns[-1]:g} mm": float(ends.iloc[-1]),
                "area": float(areas.mean()),
                "low": low,
                "high": high,
                "n": len(table),
            }
        )
    return pd.DataFrame(lines)


def shift_figure(rows: pd.DataFrame) -> str:
    """One figure: a panel per ROI metric, a line per method, amplitude along the x axis; SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    from clinfuse.report import to_svg
    from clinfuse.report.plots import COLOURS, STYLE

    good = rows[rows["status"] == "ok"]
    means = (
        good.groupby(["metric", "roi", "method", "amplitude_mm"], sort=False)["value"].mean().reset_index()
    )
    shown = [p for p in PANELS if ((means["metric"] == p[0]) & (means["roi"] == p[1])).any()]
    methods = list(dict.fromkeys(means["method"]))
    columns = min(3, max(1, len(shown)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(3.3 * columns, 2.6 * -(-max(1, len(shown)) // columns) + 0.9), layout="constrained"
        )
        handles: dict[str, Any] = {}
        for place, (metric, roi) in enumerate(shown):
            axes = figure.add_subplot(-(-len(shown) // columns), columns, place + 1)
            part = means[(means["metric"] == metric) & (means["roi"] == roi)]
            for number, method in enumerate(methods):
                line = part[part["method"] == method].sort_values("amplitude_mm")
                style: dict[str, Any] = {
                    "color": COLOURS[number % len(COLOURS)],
                    "marker": MARKERS[number % len(MARKERS)],
                }
                drawn = axes.plot(line["amplitude_mm"], line["value"], linewidth=1.3, markersize=3.5, **style)
                handles.setdefault(method, drawn[0])
            axes.set_title(f"{metric} {roi}")
            axes.set_xlabel("amplitude (mm)")
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(5, len(handles)),
            fontsize=8,
        )
        return to_svg(figure)


def panel_sensitivities(rows: pd.DataFrame) -> pd.DataFrame:
    """The `sensitivities` of the metrics that the figure shows, for reading."""
    found = sensitivities(rows)
    if found.empty:
        return found
    return found[[pair in PANELS for pair in zip(found["metric"], found["roi"], strict=True)]]


def shift_section(rows: pd.DataFrame) -> list[Section]:
    """Figure and table of the sensitivities for the report."""
    from clinfuse.report import Section, figure, table

    chosen = panel_sensitivities(rows)
    if chosen.empty:
        return []
    words = (
        "Mean over cases against the amplitude of a drawn warp of the companion: a rigid shift of that many mm, "
        "one degree per mm, and a smooth elastic warp of half the amplitude. Every method sees the same warps; "
        "the reference stays the aligned pair."
    )
    caption = (
        "Area under the curve: mean change over the range (area ÷ width), 95 % bootstrap interval over cases"
    )
    return [Section("Misregistration", figure(shift_figure(rows), words) + table(chosen, caption=caption))]


def write_shift(rows: pd.DataFrame, out: Path) -> Path:
    """misregistration.parquet: one row per metric, case, method and amplitude."""
    file = out / "misregistration.parquet"
    write_table(file, rows)
    return file


def shift_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The jobs as they are run: ROI metrics only, without pictures."""
    return [replace(job, picture="", slice_picture="", metrics="roi") for job in jobs]

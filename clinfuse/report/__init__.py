"""Pictures and pages: three-plane panels as radiologists read them, plots, and self-contained HTML."""

from __future__ import annotations

from clinfuse.report.figures import Layer, Panel, case_panel, three_planes
from clinfuse.report.html import Section, facts, figure, metric_table, page, panel_figure, table
from clinfuse.report.plots import (
    Curve,
    latency_bars,
    loss_curves,
    reliability_diagram,
    step_bars,
    to_svg,
)

__all__ = [
    "Curve",
    "Layer",
    "Panel",
    "Section",
    "case_panel",
    "facts",
    "figure",
    "latency_bars",
    "loss_curves",
    "metric_table",
    "page",
    "panel_figure",
    "reliability_diagram",
    "step_bars",
    "table",
    "three_planes",
    "to_svg",
]

"""HTML pages that need nothing but themselves: inline style, embedded pictures, legible on light and dark.

How to use it:

    from clinfuse.report import Section, case_panel, figure, metric_table, page, panel_figure, table

    sections = [
        Section("Cases", panel_figure(case_panel(case, fused=f, uncertainty=u), "Test case s03.")),
        Section("Metrics", metric_table(summary) + "<p>Bold: best of its column.</p>"),
        Section("Loss", figure(loss_curves(curves), "Training loss.")),
    ]
    Path("report.html").write_text(page("My report", sections), encoding="utf-8")

- `Section(title, html)`: one heading and its HTML; it appears in the table of contents.
- `page(title, sections, notice=…, subtitle=…) -> str`: the whole page; the notice defaults to "research use".
- `figure(image, caption)`: PNG bytes or an SVG string (from `plots`) with its caption.
- `panel_figure(panel, caption)`: a `Panel` whose ROI outlines the page's switch shows and hides.
- `table(rows, …)`: any DataFrame or list of dicts. `metric_table(summary)`: methods × metrics, mean with its
  confidence interval, best in bold.
- `facts({...})`: a two-column list of names and values. `command(text)`: a command line.
Text given to these functions is escaped; only `Section.html` is taken as HTML.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment

from clinfuse import RESEARCH_USE, __version__
from clinfuse.report.figures import Panel

LOWER_IS_BETTER = (
    "hd95",
    "hd",
    "landmark",
    "seam",
    "outside",
    "false_volume",
    "coverage_error",
    "ece",
    "ece_pooled",
    "brier",
    "ause",
    "rmse",
    "mae",
    "seconds",
    "loss",
    "error",
    "sensitivity",
)

TWO_SIDED = ("coverage",)
"""Metrics that are best at a nominal value: neither arrow nor best of the column."""


@dataclass(frozen=True)
class Section:
    """One heading of a page with its HTML; `level` 2 opens a chapter, 3 a part of it."""

    title: str
    html: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """The heading's id in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


def page(title: str, sections: Sequence[Section], *, notice: str = RESEARCH_USE, subtitle: str = "") -> str:
    """A self-contained HTML page with banner, table of contents and the sections.

    Args:
        title, subtitle: plain text.
        sections: in reading order; two sections of one title get different anchors.
        notice: the banner's text, shown at the top and in the footer.
    """
    template = _asset("page.html")
    entries: list[tuple[str, Section]] = []
    for section in sections:
        seen = sum(s.anchor == section.anchor for _, s in entries)
        entries.append((section.anchor + (f"-{seen + 1}" if seen else ""), section))
    has_outlines = any('class="outlines"' in section.html for section in sections)
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=title,
            subtitle=subtitle,
            notice=notice,
            entries=entries,
            css=_asset("page.css"),
            version=__version__,
            has_outlines=has_outlines,
        )
    )


def _asset(name: str) -> str:
    return resources.files("clinfuse.report").joinpath(name).read_text(encoding="utf-8")


def figure(image: bytes | str, caption: str, *, alt: str | None = None, width: str = "") -> str:
    """A picture with its caption: PNG bytes, or an SVG string as `clinfuse.report.plots` returns.

    Args:
        image: PNG file content or SVG text.
        caption: plain text below the picture.
        alt: description for those who do not see it; the caption if not given.
        width: CSS width such as "60%", else its natural size, never wider than the page.
    """
    words = escape(alt or caption)
    if isinstance(image, bytes):
        inner = f'<img alt="{words}" src="{data_url(image)}">'
    else:
        inner = f'<div class="plot" role="img" aria-label="{words}">{image}</div>'
    style = f' style="width:{escape(width)}"' if width else ""
    return f"<figure{style}>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def panel_figure(panel: Panel, caption: str) -> str:
    """A panel figure with its outlines as a second layer, which the page's switch hides."""
    words = escape(panel.description)
    return (
        f'<figure class="panel"><div class="stack"><img alt="{words}" src="{data_url(panel.base)}">'
        f'<img class="outlines" alt="ROI outlines" src="{data_url(panel.outlines)}"></div>'
        f"<figcaption>{escape(caption)} <span>{words}.</span></figcaption></figure>"
    )


def data_url(png: bytes) -> str:
    """PNG bytes as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def command(text: str) -> str:
    """A command line, for "how this came to be"."""
    return f'<pre class="command">{escape(text)}</pre>'


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values in two columns."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{rows}</dl>'


def table(
    rows: pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    caption: str = "",
    best: Mapping[str, str] | None = None,
    digits: int = 3,
) -> str:
    """Rows as an HTML table: numbers to `digits` significant digits, right-aligned.

    Args:
        rows: a DataFrame (its index is not shown) or a list of dicts.
        caption: plain text above the table.
        best: column → "max" or "min": the best number of that column is bold.
        digits: significant digits of floats.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    tops = {name: _best(frame[name], way) for name, way in (best or {}).items() if name in frame}
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    body = []
    for record in frame.to_dict("records"):
        cells = []
        for name, value in record.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            text = escape(_text(value, digits))
            top = tops.get(str(name))
            bold = numeric and top is not None and math.isclose(value, top)
            cells.append(f"<td{' class=number' if numeric else ''}>{f'<b>{text}</b>' if bold else text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return _framed(title, head, body)


def metric_table(
    summary: pd.DataFrame,
    *,
    columns: Sequence[tuple[str, str]] | None = None,
    caption: str = "",
    labels: Mapping[str, str] | None = None,
    lower_is_better: Sequence[str] = LOWER_IS_BETTER,
) -> str:
    """Methods as rows, (metric, ROI) as columns, mean with its 95 % interval, best of each column in bold.

    Args:
        summary: columns method, metric, roi, mean, low, high (interval; may be NaN), n (cases), unit; with goal
            (text, may be "") the goals are the first row, and with reached (bool) a ✓ marks what reaches its own.
        columns: the (metric, roi) pairs to show, in order; default all, in order of appearance.
        caption: plain text above the table.
        labels: other names for methods.
        lower_is_better: metrics whose name starts with one of these are best when small.
    """
    pairs = list(columns or dict.fromkeys(zip(summary["metric"], summary["roi"], strict=True)))
    cells = {(r["method"], r["metric"], r["roi"]): r for r in summary.to_dict("records")}
    methods = list(dict.fromkeys(summary["method"]))
    head = ["<th>method</th>"]
    tops: list[float | None] = []
    goals: list[str] = []
    for metric, roi in pairs:
        falls = metric.lower().startswith(tuple(lower_is_better))
        means = pd.Series(
            [cells[m, metric, roi]["mean"] for m in methods if (m, metric, roi) in cells], dtype=float
        )
        best = _best(means, "min" if falls else "max")
        differ = means.dropna().map(_text).nunique() > 1
        tops.append(best if differ and metric not in TWO_SIDED else None)
        column = [r for (_, a, b), r in cells.items() if (a, b) == (metric, roi)]
        unit = str(column[0].get("unit") or "") if column else ""
        goals.append(next((str(r["goal"]) for r in column if r.get("goal")), ""))
        where = f"<br><small>{escape(roi)}{' · ' + escape(unit) if unit and unit != '1' else ''}</small>"
        arrow = "" if metric in TWO_SIDED else " ↓" if falls else " ↑"
        head.append(f"<th>{escape(metric)}{arrow}{where}</th>")
    body = []
    if any(goals):
        stated = "".join(f'<td class="number">{escape(goal)}</td>' for goal in goals)
        body.append(f"<tr><td><i>goal</i></td>{stated}</tr>")
    for method in methods:
        row = [f"<td>{escape((labels or {}).get(method, method))}</td>"]
        row += [_cell(cells.get((method, *pair)), top) for pair, top in zip(pairs, tops, strict=True)]
        body.append(f"<tr>{''.join(row)}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return _framed(title, "".join(head), body, kind="metrics")


def _framed(title: str, head: str, body: Sequence[str], kind: str = "plain") -> str:
    return (
        f'<div class="wide"><table class="{kind}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(record: Mapping[Hashable, Any] | None, top: float | None) -> str:
    if record is None or not math.isfinite(float(record["mean"])):
        return '<td class="number">–</td>'
    mean = float(record["mean"])
    text = _text(mean)
    if top is not None and (math.isclose(mean, top, rel_tol=1e-9) or text == _text(top)):
        text = f"<b>{text}</b>"
    text += " ✓" if record.get("reached") else ""
    low, high = float(record.get("low", math.nan)), float(record.get("high", math.nan))
    span = f"<br><small>{_text(low)} … {_text(high)}</small>" if math.isfinite(low + high) else ""
    return f'<td class="number">{text}{span}</td>'


def _best(values: pd.Series, way: str) -> float | None:
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    if numbers.empty:
        return None
    return float(numbers.min() if way == "min" else numbers.max())


def _text(value: object, digits: int = 3) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if value == 0 or 1e-3 <= abs(value) < 1e4:
            whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
            return f"{value:.{max(digits - whole, 0)}f}"
        return f"{value:.{digits - 1}e}"
    return str(value)

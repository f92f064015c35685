"""`clinfuse inspect`: a table on the console, a contact sheet and a page with ROI outlines and findings."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from clinfuse import RESEARCH_USE
from clinfuse.case import ROIS, Case
from clinfuse.console import CONSOLE, counted, progress, say
from clinfuse.errors import ConfigError, InputError
from clinfuse.folders import check_writable
from clinfuse.report import figures, html
from clinfuse_prep.contact_sheet import contact_sheet
from clinfuse_prep.findings import SEVERITIES, Finding
from clinfuse_prep.store import CaseStore

MOST_PANELS = 24
COLOURS = {"info": "dim", "warning": "yellow", "error": "red", "": ""}


def inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Show a dataset.

    Returns:
        result (the page, or the dataset without pictures), cases, lost, table (rows as data), findings.
    """
    store = CaseStore(arguments.data)
    out = None if arguments.no_pictures else _out(arguments, store)
    rows = store.manifest()
    wanted = _wanted(arguments.cases, rows)
    if wanted:
        rows = rows[rows["case_id"].isin(wanted)]
    CONSOLE.print(_console_table(rows))
    findings = [item for text in rows["findings"] for item in json.loads(text)]
    for item in findings:
        if item["severity"] != "info":
            Finding.from_dict(item).tell()
    say(RESEARCH_USE)
    facts: dict[str, Any] = {
        "cases": int((rows["state"] == "ok").sum()),
        "lost_in_prep": int((rows["state"] == "lost").sum()),
        "table": json.loads(rows.drop(columns="findings").to_json(orient="records")),
        "findings": findings,
    }
    if out is None:
        return {"result": str(arguments.data), **facts}
    return {**_write_pictures(store, rows, findings, out), **facts}


def _out(arguments: argparse.Namespace, store: CaseStore) -> Path:
    """Where sheet and page go, looked at before the work."""
    if store.local is None and not arguments.out:
        raise ConfigError("a dataset at a URL needs --out", expected="a local folder", found="none")
    out = Path(arguments.out) if arguments.out else Path(f"{str(arguments.data).rstrip('/')}.inspect")
    check_writable(out)
    return out


def _wanted(text: str | None, rows: pd.DataFrame) -> list[str]:
    wanted = [part for part in (text or "").split(",") if part]
    missing = sorted(set(wanted) - set(rows["case_id"]))
    if missing:
        raise InputError("no such case in the dataset", found=", ".join(missing), todo="see clinfuse inspect")
    return wanted


def _console_table(rows: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("case", "split", "images", "shape", "mm"):
        table.add_column(name, no_wrap=True)
    for name in (*(f"{roi}\nmL" for roi in ROIS), "findings"):
        table.add_column(name, no_wrap=True, justify="right" if name != "findings" else "left")
    for row in rows.to_dict(orient="records"):
        counts = Counter(item["severity"] for item in json.loads(row["findings"]))
        note = ", ".join(f"{counts[name]} {name}" for name in reversed(SEVERITIES) if counts[name]) or "–"
        colour = COLOURS[row["worst"]]
        cells = _cells(row)
        table.add_row(cells[0], *cells[2:], f"[{colour}]{note}[/{colour}]" if colour else note)
    return table


def _cells(row: dict[Any, Any]) -> list[str]:
    if row["state"] != "ok":
        return [row["case_id"], row["patient"], "lost", row["modalities"], *["–"] * 5]
    shape = "×".join(str(int(row[f"size_{axis}"])) for axis in "dhw")
    spacing = "×".join(f"{row[f'spacing_{axis}_mm']:.3g}" for axis in "dhw")
    images = row["modalities"] + (" (simulated)" if row["simulated"] else "")
    volumes = ["–" if row[f"{roi}_provenance"] == "absent" else f"{row[f'{roi}_ml']:.0f}" for roi in ROIS]
    return [row["case_id"], row["patient"], row["split"], images, shape, spacing, *volumes]


def _write_pictures(
    store: CaseStore, rows: pd.DataFrame, findings: list[dict[str, str]], out: Path
) -> dict[str, str]:
    out.mkdir(parents=True, exist_ok=True)
    ids = list(rows.loc[rows["state"] == "ok", "case_id"])
    sheet = out / "contact_sheet.png"
    sheet.write_bytes(contact_sheet(store, ids))
    sections = [
        html.Section("Cases", html.table(_page_rows(rows), digits=4)),
        html.Section("Findings", html.table(findings) if findings else "<p>None.</p>"),
        html.Section("Contact sheet", html.figure(sheet.read_bytes(), "Six slices a case, ROI outlined.")),
    ]
    for case_id in progress(ids[:MOST_PANELS], label="pictures"):
        case = store.read(case_id)
        words = ", ".join(f"{roi} {how}" for roi, how in case.attrs.get("provenance", {}).items())
        caption = f"{case_id} ({case.attrs.get('split', '')}). Masks: {words}.{_registered(case)}"
        panel = html.panel_figure(figures.case_panel(case), caption)
        sections.append(html.Section(f"Case {case_id}", panel, level=3))
    page = out / "inspect.html"
    subtitle = counted(len(ids), "case") + (
        f", the first {MOST_PANELS} shown" if len(ids) > MOST_PANELS else ""
    )
    page.write_text(html.page("Dataset", sections, subtitle=subtitle), encoding="utf-8")
    return {"result": str(page), "contact_sheet": str(sheet)}


def _registered(case: Case) -> str:
    """The quality figure of a case's registration in words; "" when the headers were trusted."""
    record = case.attrs.get("registration") or {}
    if "nmi" not in record:
        return ""
    doubt = " Doubtful: see the findings." if record["doubtful"] else ""
    return (
        f" Registered ({record['method']}): shift {record['shift_mm']:.1f} mm, turn {record['turn_deg']:.1f}°, "
        f"shared information {record['nmi_before']:.3f} before, {record['nmi']:.3f} after, "
        f"{record.get('nmi_chance', 1.0):.3f} by chance.{doubt}"
    )


def _page_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    names = ("case", "patient", "split", "images", "shape", "spacing mm", *(f"{roi} mL" for roi in ROIS))
    return [dict(zip(names, _cells(row), strict=True)) for row in rows.to_dict(orient="records")]

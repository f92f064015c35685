"""What an evaluation leaves: metrics.parquet, summary.parquet, table.md, and a self-contained page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clinfuse import RESEARCH_USE
from clinfuse_platform.evaluate import Job, with_picture
from clinfuse_platform.variants import slab

if TYPE_CHECKING:
    from clinfuse.report import Section

MOST_PICTURES = 4


def write_evaluation(rows: pd.DataFrame, out: Path, data: str, jobs: Sequence[Job]) -> dict[str, Path]:
    """Write all files of an evaluation and say where they are.

    Args:
        rows: see clinfuse.evaluation.rows.COLUMNS.
        out: folder.
        data: the dataset, for the pictures.
        jobs: as run; the first model's pictures are shown.
    """
    from clinfuse.evaluation import summarise, to_html, to_markdown
    from clinfuse.report import Section, page

    out.mkdir(parents=True, exist_ok=True)
    files = {
        "metrics": out / "metrics.parquet",
        "summary": out / "summary.parquet",
        "table": out / "table.md",
        "report": out / "report.html",
    }
    summary = summarise(rows)
    rows.to_parquet(files["metrics"], index=False)
    summary.to_parquet(files["summary"], index=False)
    files["table"].write_text(f"{to_markdown(summary)}\n{RESEARCH_USE}\n", encoding="utf-8")
    sections = [Section("Methods side by side", to_html(summary)), *failures(rows), *pictures(data, jobs)]
    files["report"].write_text(page("Evaluation", sections), encoding="utf-8")
    return files


def failures(rows: pd.DataFrame) -> list[Section]:
    """Which cases failed with which method and why; no section if none did."""
    from clinfuse.report import Section, table

    failed = rows[rows["status"].str.startswith("failed")]
    if failed.empty:
        return []
    shown = failed[["method", "case_id", "metric", "roi", "status"]].drop_duplicates()
    return [Section("What failed", table(shown))]


def pictures(data: str, jobs: Sequence[Job]) -> list[Section]:
    """Sources, fused image and uncertainty of the first model's cases, with outlines."""
    from clinfuse_prep.store import CaseStore

    from clinfuse.report import Section, case_panel, panel_figure

    first = next((job.variant.label for job in jobs if job.picture), None)
    shown = [job for job in jobs if job.variant.label == first and Path(job.picture).is_file()]
    figures = []
    for job in shown[:MOST_PICTURES]:
        case = slab(CaseStore(data).read(job.case_id), job.slices)
        panel = case_panel(**with_picture(case, Path(job.picture)))
        figures.append(panel_figure(panel, f"Case {job.case_id}, method {first}"))
    return [Section("Cases", "".join(figures))] if figures else []

"""What an evaluation leaves: metrics.parquet, summary.parquet, tests.parquet, table.md, and a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clinfuse import RESEARCH_USE
from clinfuse_platform.evaluate_slices import drill_down, with_picture
from clinfuse_platform.storage import write_atomic, write_table
from clinfuse_platform.variants import slab

if TYPE_CHECKING:
    from clinfuse.report import Section
    from clinfuse_platform.evaluate import Job
    from clinfuse_platform.variants import Variant

MOST_PICTURES = 4
FIELD = ("EN", "SD", "SF", "AG", "MI", "SCD", "VIF", "Qabf", "SSIM_sum")


def write_evaluation(
    rows: pd.DataFrame,
    out: Path,
    data: str,
    jobs: Sequence[Job],
    *,
    shifts: pd.DataFrame | None = None,
    downstream: pd.DataFrame | None = None,
    split: str = "test",
    card: bool = False,
) -> dict[str, Path]:
    """Write all files of an evaluation, each whole or not at all, and say where they are.

    Args:
        rows: see clinfuse.evaluation.rows.COLUMNS.
        out: folder.
        data: the dataset, for the pictures.
        jobs: as run; the first method is the one compared with all others, the first model's pictures are shown.
        shifts: rows under misregistration, with amplitude_mm.
        downstream: rows of the segmentation networks trained on each method's images.
        split: the split that was evaluated, for the model card; goals are shown where it has any.
        card: put the card into the first model's folder, too.
    """
    from clinfuse.evaluation import comparison_html, paired_tests, summarise, to_html, to_markdown, with_goals
    from clinfuse.report import Section, page, table
    from clinfuse_platform.evaluate_card import write_card
    from clinfuse_platform.evaluate_costs import cost_table
    from clinfuse_platform.evaluate_downstream import downstream_section, write_downstream
    from clinfuse_platform.evaluate_lesions import cases_table, lesion_head_section
    from clinfuse_platform.evaluate_shift import panel_sensitivities, shift_section, write_shift

    names = (
        "metrics.parquet",
        "summary.parquet",
        "tests.parquet",
        "costs.parquet",
        "table.md",
        "report.html",
    )
    files = {Path(name).stem: out / name for name in names}
    variants = methods_in(jobs)
    model = next((variant for variant in variants if variant.model), None)
    judged = model is not None and jobs[0].head not in ("", model.model)
    first, summary, costs = variants[0].label, summarise(rows), cost_table(rows, variants)
    write_table(files["metrics"], rows)
    write_table(files["summary"], summary)
    write_table(files["tests"], paired_tests(rows))
    write_table(files["costs"], costs)
    systems, shown = systems_table(variants), with_goals(summary, split)
    moved = (
        "" if shifts is None else f"## Misregistration\n\n{plain_markdown(panel_sensitivities(shifts))}\n\n"
    )
    write_atomic(
        files["table"],
        f"{to_markdown(shown)}\n{moved}## Parameters and time\n\n{plain_markdown(costs)}\n\n"
        f"## Systems named in the proposal\n\n{plain_markdown(systems)}\n\n{RESEARCH_USE}\n",
    )
    compared = (
        comparison_html(rows, first, metrics=FIELD) if only_field(rows) else comparison_html(rows, first)
    )
    sections = [
        Section("Methods side by side", to_html(shown)),
        *lesion_head_section(rows, cases_table(data), first, judged=judged),
        *([Section("Is a difference more than chance", compared)] if compared else []),
        Section("Parameters and time", table(costs)),
        *failures(pd.concat([table for table in (rows, shifts, downstream) if table is not None])),
    ]
    if shifts is not None:
        files["misregistration"] = write_shift(shifts, out)
        sections += shift_section(shifts)
    if downstream is not None:
        files["downstream"] = write_downstream(downstream, out)
        sections += downstream_section(downstream)
    sections += [*pictures(data, jobs), *drill_down(rows, data, jobs)]
    sections.append(Section("Systems named in the proposal", table(systems)))
    write_atomic(files["report"], page("Evaluation", sections))
    if model is not None:
        tables = {"rows": rows, "shifts": shifts, "downstream": downstream}
        files["card"] = write_card(model, tables, out, data, split, judged=judged, into_model=card)
    return files


def methods_in(jobs: Sequence[Job]) -> list[Variant]:
    """The methods of the jobs, in order, each once."""
    return list({job.variant.label: job.variant for job in jobs}.values())


def only_field(rows: pd.DataFrame) -> bool:
    """Whether only the fusion field's whole-image metrics were asked for."""
    return set(rows["metric"]) <= {*FIELD, "fusion"}


def systems_table(variants: Sequence[Variant]) -> pd.DataFrame:
    """Every system of the proposal with its row, or why it has none."""
    from clinfuse.baselines.systems import system_rows
    from clinfuse_platform.evaluate_costs import learned_facts

    kinds = {str(facts["kind"]): v.label for v in variants if "kind" in (facts := learned_facts(v))}
    return pd.DataFrame(system_rows(kinds))


def plain_markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table; numbers to four digits."""
    head = [str(name) for name in frame.columns]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for record in frame.itertuples(index=False):
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in record]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    shown = [
        job for job in jobs if job.variant.label == first and job.picture and Path(job.picture).is_file()
    ]
    figures = []
    for job in shown[:MOST_PICTURES]:
        case = slab(CaseStore(data).read(job.case_id), job.slices)
        panel = case_panel(**with_picture(case, Path(job.picture)))
        figures.append(panel_figure(panel, f"Case {job.case_id}, method {first}"))
    return [Section("Three planes and uncertainty", "".join(figures))] if figures else []

"""The drill-down of an evaluation: per case, one axial slice of every method beside its numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clinfuse.case import Case, FloatArray
from clinfuse_platform.storage import write_atomic
from clinfuse_platform.variants import slab

if TYPE_CHECKING:
    from clinfuse.report import Section
    from clinfuse_platform.evaluate import Job

MOST_CASES = 12
UNDER_PICTURE = (("ssim", "brain"), ("ssim", "bone"), ("dice", "lesion"), ("seam", "borders"))
GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.6rem;margin:.6rem 0"


def shown_slice(case: Case) -> int:
    """Index of the axial slice to look at: where the lesion is largest, else the brain, else the middle."""
    for mask in (case.lesion, case.brain):
        area = mask.sum(axis=(1, 2))
        if area.any():
            return int(area.argmax())
    return case.shape[0] // 2


def slice_png(image: FloatArray, case: Case) -> bytes:
    """The shown slice of a volume (D, H, W) in [0, 1] as an 8-bit PNG in radiological display, square pixels."""
    from PIL import Image

    from clinfuse.report.figures import png_bytes
    from clinfuse.report.planes import AXIAL

    cut = AXIAL.cut(np.clip(image, 0, 1), shown_slice(case))
    picture = Image.fromarray(np.rint(cut * 255).astype(np.uint8))
    _, high, wide = case.spacing
    if abs(high - wide) > 1e-3 * wide:
        picture = picture.resize((picture.width, max(1, round(picture.height * high / wide))))
    return png_bytes(picture)


def keep_slice(path: str, fused: FloatArray, case: Case) -> None:
    """Write the shown slice of a fused image."""
    write_atomic(path, slice_png(fused, case))


def drill_down(rows: pd.DataFrame, data: str, jobs: Sequence[Job]) -> list[Section]:
    """One foldable part per case: sources, every method's slice with its clinical numbers, the table of all numbers.

    Args:
        rows: see clinfuse.evaluation.rows.COLUMNS.
        data: the dataset.
        jobs: as run; at most `MOST_CASES` cases are shown, the rest are in metrics.parquet.
    """
    from clinfuse_prep.store import CaseStore

    from clinfuse.report import Section

    store, case_ids = CaseStore(data), list(dict.fromkeys(job.case_id for job in jobs))
    parts = []
    for case_id in case_ids[:MOST_CASES]:
        own = [job for job in jobs if job.case_id == case_id]
        try:
            case = slab(store.read(case_id), own[0].slices)
        except Exception as error:
            parts.append(f"<p>Case {escape(case_id)} cannot be read: {escape(type(error).__name__)}.</p>")
            continue
        parts.append(_case(case, rows[rows["case_id"] == case_id], own))
    if len(case_ids) > MOST_CASES:
        parts.append(f"<p>{len(case_ids) - MOST_CASES} further cases are in metrics.parquet.</p>")
    return [Section("Case by case", "".join(parts))] if parts else []


def _case(case: Case, rows: pd.DataFrame, jobs: Sequence[Job]) -> str:
    from clinfuse.report import table
    from clinfuse.report.figures import companion_name

    pictures = [
        _picture(slice_png(case.anatomy, case), case.modalities[0], "anatomy image"),
        _picture(slice_png(case.companion, case), companion_name(case), "companion as the methods saw it"),
    ]
    values = {
        (r["method"], r["metric"], r["roi"]): r["value"]
        for r in rows.to_dict("records")
        if r["status"] == "ok"
    }
    for job in jobs:
        file = Path(job.slice_picture)
        if job.slice_picture and file.is_file():
            label = job.variant.label
            told = [
                (f"{m} {roi}", values[label, m, roi]) for m, roi in UNDER_PICTURE if (label, m, roi) in values
            ]
            words = ", ".join(f"{name} {value:.3f}" for name, value in told)
            pictures.append(_picture(file.read_bytes(), label, words))
    numbers = rows.assign(
        column=rows["metric"] + " " + rows["roi"], shown=[shown_value(r) for r in rows.to_dict("records")]
    )
    wide = numbers.pivot_table(index="method", columns="column", values="shown", aggfunc="first", sort=False)
    about = f"{case.shape[0]} slices, lesion {'present' if case.has_lesion else 'absent'}"
    if case.attrs.get("simulated"):
        about += ", simulated"
    return (
        f"<details><summary>Case {escape(case.case_id)}: {escape(about)}</summary>"
        f'<div style="{GRID}">{"".join(pictures)}</div>{table(wide.reset_index())}</details>'
    )


def shown_value(row: Mapping[Any, Any]) -> float | str:
    """A row's value, or in a word why there is none."""
    return float(row["value"]) if row["status"] == "ok" else str(row["status"]).partition(":")[0]


def _picture(png: bytes, title: str, words: str) -> str:
    from clinfuse.report.html import data_url

    return (
        f'<figure style="margin:0"><img alt="{escape(title)}" style="width:100%" src="{data_url(png)}">'
        f"<figcaption><b>{escape(title)}</b> {escape(words)}</figcaption></figure>"
    )


def with_picture(case: Case, picture: Path) -> dict[str, Any]:
    """Arguments for clinfuse.report.case_panel from a kept volume."""
    with np.load(picture, allow_pickle=False) as arrays:
        return {"case": case, **{name: arrays[name].astype(np.float32) for name in arrays.files}}


def keep_picture(path: Path, fused: Any, uncertainty: Any) -> None:
    """Write fused image and uncertainty (D, H, W) as float16, for reports."""
    given = {"fused": fused} | ({} if uncertainty is None else {"uncertainty": uncertainty})
    arrays: dict[str, Any] = {name: np.asarray(array, np.float16) for name, array in given.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())

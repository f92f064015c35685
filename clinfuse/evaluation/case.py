"""Every metric of one fused case, as rows; a metric that fails is a row that says so."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from clinfuse.case import Case, FloatArray
from clinfuse.evaluation.lesions import segment_lesion
from clinfuse.evaluation.objectives import check_fused, reference_companion, sources
from clinfuse.evaluation.rows import RowMaker
from clinfuse.metrics.lesion import LesionScores, lesion_scores
from clinfuse.metrics.roi import outside_sources, roi_psnr, roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.presets import Preset

Rows = list[dict[str, Any]]


def evaluate_case(
    case: Case,
    fused: FloatArray,
    method: str,
    *,
    preset: Preset,
    lesion_head: nn.Module | None = None,
    metrics: Literal["roi", "all"] = "roi",
    seconds: float = math.nan,
) -> Rows:
    """Measure one fused volume.

    The brain is compared with the anatomy image, the bone with the companion; where the case knows its companion
    without misregistration, that is the reference everywhere.

    Args:
        case: the case that was fused.
        fused: (D, H, W) in [0, 1] on the case's grid.
        method: the method's name in the table.
        preset: its name goes into the rows, its τ into the surface Dice.
        lesion_head: segments the lesion in F; without it there are no lesion rows.
        metrics: "roi" the clinical ones.
        seconds: what the method took to fuse the case.

    Returns:
        Rows with the columns of `clinfuse.evaluation.rows.COLUMNS`.

    Raises:
        GeometryError, InputError: the fused image does not fit the case.
    """
    f = check_fused(case, fused)
    maker = RowMaker(case_id=case.case_id, method=method, preset=preset.name, seconds=seconds)
    rows = _roi_rows(maker, case, f)
    if lesion_head is not None:
        rows += _lesion_rows(maker, case, f, preset, lesion_head)
    return rows


def _roi_rows(maker: RowMaker, case: Case, f: FloatArray) -> Rows:
    companion = reference_companion(case)
    borders = (case.brain, case.bone)
    table = [
        ("ssim", "brain", lambda: roi_ssim(f, case.anatomy, case.brain)),
        ("ssim", "bone", lambda: roi_ssim(f, companion, case.bone)),
        ("psnr", "bone", lambda: roi_psnr(f, companion, case.bone)),
        ("seam", "borders", lambda: seam_index(f, sources(case), borders)),
        ("outside", "whole", lambda: outside_sources(f, *sources(case))),
    ]
    rows: Rows = []
    for metric, roi, measure in table:
        rows += maker.guarded([(metric, roi)], lambda m=metric, r=roi, v=measure: [maker.row(m, r, v())])  # type: ignore[misc]
    return rows


def _lesion_rows(maker: RowMaker, case: Case, f: FloatArray, preset: Preset, head: nn.Module) -> Rows:
    def compute() -> Rows:
        found = segment_lesion(head, f)
        return lesion_rows(maker, lesion_scores(case.lesion, found, case.spacing, preset.tau_mm))

    return maker.guarded([("dice", "lesion"), ("nsd", "lesion"), ("hd95", "lesion")], compute)


def lesion_rows(maker: RowMaker, scores: LesionScores) -> Rows:
    """Three rows of a lesion's scores; a case without lesion adds the volume found by mistake."""
    rows = [
        maker.row("dice", "lesion", scores.dice, scores.status),
        maker.row("nsd", "lesion", scores.nsd, scores.status),
        maker.row("hd95", "lesion", scores.hd95_mm, scores.status),
    ]
    if scores.status != "ok":
        rows.append(maker.row("false_volume", "lesion", scores.false_volume_ml))
    return rows

"""Every metric of one fused case, as rows; a metric that fails is a row that says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from clinfuse.case import Case, FloatArray
from clinfuse.evaluation.lesions import segment_lesion
from clinfuse.evaluation.objectives import check_fused, reference_companion, sources
from clinfuse.evaluation.rows import RowMaker
from clinfuse.evaluation.uncertain import UncertainResult, uncertainty_rows
from clinfuse.metrics.field import FIELD, content_slices, field_metrics
from clinfuse.metrics.fmi import FEATURES, fmi
from clinfuse.metrics.fsim import fsim_to_sources, roi_fsim
from clinfuse.metrics.lesion import LesionScores, lesion_scores
from clinfuse.metrics.roi import outside_sources, psnr_to_sources, roi_psnr, roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.presets import Preset

Rows = list[dict[str, Any]]
Table = list[tuple[str, str, Callable[[], float]]]
# the field's SSIM is a sum over both sources in a convention of its own: not to be taken for the other
ROW_NAMES = {"SSIM": "SSIM_sum"}
FIELD_SLICES = 48
FMI_SLICES = 6


def evaluate_case(
    case: Case,
    fused: FloatArray,
    method: str,
    *,
    preset: Preset,
    lesion_head: nn.Module | None = None,
    result: UncertainResult | None = None,
    metrics: Literal["roi", "all", "field"] = "roi",
    given: FloatArray | None = None,
    seconds: float = math.nan,
    field_slices: int | None = FIELD_SLICES,
    fmi_slices: int | None = FMI_SLICES,
    device: str = "cpu",
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
        result: the pipeline's result with its uncertainty; without it there are no uncertainty rows.
        metrics: "roi" the clinical ones; "all" also whole-image FSIM, SSIM and PSNR and the fusion field's; "field"
            the fusion field's alone, over every slice with content.
        given: the companion (D, H, W) that the method saw, where it was displaced on purpose.
        seconds: what the method took to fuse the case.
        field_slices: at most so many evenly spaced slices with content enter the field's metrics and the
            whole-image FSIM; None is all of them.
        fmi_slices: the same for FMI, which costs most.
        device: where FSIM is computed, e.g. "cuda".

    Returns:
        Rows with the columns of `clinfuse.evaluation.rows.COLUMNS`.

    Raises:
        GeometryError, InputError: the fused image does not fit the case.
    """
    f = check_fused(case, fused)
    maker = RowMaker(case_id=case.case_id, method=method, preset=preset.name, seconds=seconds)
    if metrics == "field":
        return _field_rows(maker, case, f, None)
    rows = _measure(maker, _roi_table(case, f, given, device))
    if lesion_head is not None:
        rows += _lesion_rows(maker, case, f, preset, lesion_head)
    if result is not None:
        doubt = result
        rows += maker.guarded(
            [("uncertainty", "head")], lambda: uncertainty_rows(maker, case, f, preset, doubt)
        )
    if metrics == "all":
        rows += _measure(maker, _whole_table(case, f, field_slices, fmi_slices, device))
        rows += _field_rows(maker, case, f, field_slices)
    return rows


def _measure(maker: RowMaker, table: Table) -> Rows:
    rows: Rows = []
    for metric, roi, measure in table:
        rows += maker.guarded([(metric, roi)], partial(_one_row, maker, metric, roi, measure))
    return rows


def _one_row(maker: RowMaker, metric: str, roi: str, measure: Callable[[], float]) -> Rows:
    return [maker.row(metric, roi, measure())]


def _roi_table(case: Case, f: FloatArray, given: FloatArray | None, device: str) -> Table:
    companion, taken_from = reference_companion(case), sources(case, given)
    borders = (case.brain, case.bone)
    return [
        ("ssim", "brain", lambda: roi_ssim(f, case.anatomy, case.brain)),
        ("fsim", "brain", lambda: roi_fsim(f, case.anatomy, case.brain, device=device)),
        ("ssim", "bone", lambda: roi_ssim(f, companion, case.bone)),
        ("psnr", "bone", lambda: roi_psnr(f, companion, case.bone)),
        ("seam", "borders", lambda: seam_index(f, taken_from, borders)),
        ("outside", "whole", lambda: outside_sources(f, *taken_from)),
    ]


def _whole_table(
    case: Case, f: FloatArray, field_slices: int | None, fmi_slices: int | None, device: str
) -> Table:
    """Whole-image similarity: the mean over both sources; PSNR from the mean squared error over both."""
    pair = (case.anatomy, reference_companion(case))

    def feature_similarity() -> float:
        keep = content_slices(*pair, field_slices)
        if not keep.size:
            return math.nan
        return sum(fsim_to_sources(f[keep], [source[keep] for source in pair], device=device)) / 2

    table: Table = [
        ("ssim", "whole", lambda: (roi_ssim(f, pair[0]) + roi_ssim(f, pair[1])) / 2),
        ("psnr", "whole", lambda: psnr_to_sources(f, pair)),
        ("fsim", "whole", feature_similarity),
    ]
    for feature in FEATURES:
        table.append((f"FMI_{feature}", "whole", partial(fmi, f, *pair, feature, slices=fmi_slices)))
    return table


def _field_rows(maker: RowMaker, case: Case, f: FloatArray, slices: int | None) -> Rows:
    def compute() -> Rows:
        values = field_metrics(f, case.anatomy, reference_companion(case), slices=slices)
        return [maker.row(ROW_NAMES.get(name, name), "whole", value) for name, value in values.items()]

    return maker.guarded([(ROW_NAMES.get(name, name), "whole") for name in FIELD], compute)


def _lesion_rows(maker: RowMaker, case: Case, f: FloatArray, preset: Preset, head: nn.Module) -> Rows:
    def compute() -> Rows:
        found = segment_lesion(head, f, case.spacing)
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

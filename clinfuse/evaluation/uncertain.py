"""Rows on the uncertainty of a fused case: against the aligned target where it is known, else inside the ROIs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case, FloatArray
from clinfuse.evaluation.rows import GAP, RowMaker
from clinfuse.metrics.uncertainty import brier, coverage, rank_correlation, reliability, sparsification
from clinfuse.presets import Preset

TOLERANCE = 0.05
PER_CASE = ("ece", "brier", "ause", "ause_ratio", "spearman")


class UncertainResult(Protocol):
    """What evaluation needs of a pipeline's result: `clinfuse.pipeline.FusionResult` has it.

    All (D, H, W): uncertainty in [0, 1], interval the half width in image units or None.
    """

    @property
    def uncertainty(self) -> FloatArray: ...

    @property
    def interval(self) -> FloatArray | None: ...

    @property
    def info(self) -> dict[str, Any]: ...


def error_and_regions(
    case: Case, fused: FloatArray, preset: Preset
) -> tuple[FloatArray, dict[str, NDArray[np.bool_]]]:
    """|F − reference| per voxel and the regions in which that reference is one.

    With a known aligned companion the reference is the refined prior of the aligned pair, everywhere in the head;
    on real data it is the anatomy image in the brain and the companion in the bone, and nothing elsewhere.

    Returns:
        error (D, H, W) in [0, 1]; masks by name.
    """
    brain, bone, lesion = (m > 0 for m in (case.brain, case.bone, case.lesion))
    if case.aligned_companion is not None:
        from dataclasses import replace

        from clinfuse.baselines.simple import refined

        target = refined(replace(case, companion=case.aligned_companion), preset)
        head = brain | bone | lesion
        return np.abs(fused - target), {"head": head, "brain": brain, "bone": bone, "lesion": lesion}
    target = np.where(bone, case.companion, case.anatomy)
    inner = brain & ~bone & ~lesion
    return np.abs(fused - target), {"head": inner | bone, "brain": inner, "bone": bone}


def uncertainty_rows(
    maker: RowMaker, case: Case, fused: FloatArray, preset: Preset, result: UncertainResult
) -> list[dict[str, Any]]:
    """Calibration, coverage and ranking per region.

    The event is |F − reference| above the tolerance that the calibration was fitted for
    (`result.info["error_tolerance"]`); without calibration it is 0.05.
    """
    error, regions = error_and_regions(case, fused, preset)
    tolerance = float(result.info.get("error_tolerance", TOLERANCE))
    doubt = np.asarray(result.uncertainty, dtype=np.float64)
    rows = []
    for roi, mask in regions.items():
        e, u = error[mask], doubt[mask]
        values = dict.fromkeys(PER_CASE, float("nan"))
        if e.size:
            curves, diagram = sparsification(e, u), reliability(u, e > tolerance)
            values |= {"ece": diagram.ece, "brier": brier(u, e > tolerance)}
            values |= {"ause": curves.ause, "ause_ratio": curves.ratio, "spearman": rank_correlation(e, u)}
            values |= {f"{GAP}{number:02d}": float(gap) for number, gap in enumerate(diagram.gaps)}
        if result.interval is not None:
            values["coverage"] = coverage(e, np.asarray(result.interval)[mask])
        rows += [maker.row(name, roi, value) for name, value in values.items()]
    return rows

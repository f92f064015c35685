"""The row: one value of one metric in one region of one case for one method, with its unit and its status."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clinfuse.errors import describe

COLUMNS = ("case_id", "method", "preset", "metric", "roi", "value", "unit", "status", "seconds")
OK, EMPTY, FAILED = "ok", "empty", "failed"
UNITS = {
    "psnr": "dB",
    "seam": "grey",
    "hd95": "mm",
    "landmark": "mm",
    "false_volume": "ml",
    "EN": "bit",
    "MI": "nat",
    "SD": "grey",
    "SF": "grey",
    "AG": "grey",
}
GAP = "gap_"
"""Rows of this prefix hold one bin each of a case's reliability diagram; `summarise` makes `ece_pooled` of them."""
UNCERTAINTY = ("ece", "ece_pooled", "brier", "coverage", "ause", "ause_ratio", "spearman")
TWO_SIDED = {"coverage": 0.90}
"""Metrics that are best at a nominal value, the middle of their goal; see `compared`."""
# Metrics that are better when small; all others, but those above, are better when large.
LOWER_IS_BETTER = (
    "hd95",
    "landmark",
    "seam",
    "outside",
    "false_volume",
    "ece",
    "ece_pooled",
    "brier",
    "ause",
    "ause_ratio",
    "coverage_error",
    "error",
)


def compared(metric: str, values: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """What methods are compared by in tests and rankings, and whether less of it is better.

    Args:
        metric: whose values these are.
        values: any shape, in the metric's unit; NaN stays.

    Returns:
        The values themselves, or for a metric of TWO_SIDED their distances to its nominal value, case by case.
    """
    if metric in TWO_SIDED:
        return (values - TWO_SIDED[metric]).abs(), True
    return values, metric in LOWER_IS_BETTER


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows that share case, method, preset and the seconds that the method took."""

    case_id: str
    method: str
    preset: str
    seconds: float = math.nan

    def row(self, metric: str, roi: str, value: float, status: str = OK) -> dict[str, Any]:
        """One row; a NaN value without a reason becomes `empty`, so that none goes unexplained."""
        if status == OK and math.isnan(value):
            status = EMPTY
        return {
            "case_id": self.case_id,
            "method": self.method,
            "preset": self.preset,
            "metric": metric,
            "roi": roi,
            "value": float(value),
            "unit": UNITS.get(metric, "1"),
            "status": status,
            "seconds": float(self.seconds),
        }

    def guarded(
        self, names: list[tuple[str, str]], compute: Callable[[], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The rows that `compute` makes, or a failed row per (metric, roi) name: the other metrics go on."""
        try:
            return compute()
        except Exception as error:
            reason = f"{FAILED}: {describe(error)}"
            return [self.row(metric, roi, math.nan, reason) for metric, roi in names]


def failed_rows(
    case_id: str, method: str, preset: str, error: BaseException, seconds: float = math.nan
) -> list[dict[str, Any]]:
    """The single row that stands for a case on which the method itself failed; it tells no path (see `describe`)."""
    maker = RowMaker(case_id=case_id, method=method, preset=preset, seconds=seconds)
    return [maker.row("fusion", "whole", math.nan, f"{FAILED}: {describe(error)}")]

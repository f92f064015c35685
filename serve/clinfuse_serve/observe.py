"""What people who run the service see besides /metrics: the same numbers in Ray's own metrics, one JSON log line a
request, and drift of what comes in against what the model was trained on. No name is ever part of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clinfuse_serve.metrics import BUCKETS, COUNTERS, GAUGES, HISTOGRAMS, Metrics

if TYPE_CHECKING:
    from clinfuse.case import Case
    from clinfuse.combine import FusionResult

UNSURE = 0.5
LABELS = {
    "clinfuse_requests_total": ("route", "status"),
    "clinfuse_member_failures_total": ("member",),
    "clinfuse_input_mean": ("image",),
    "clinfuse_input_drift": ("image",),
    "clinfuse_seconds": ("phase",),
}


class RayMetrics:
    """Counts into Ray's metrics what a replica counts for itself; Ray adds node, application and replica."""

    def __init__(self) -> None:
        from ray.util import metrics as ray_metrics

        def made(kind: Any, table: Mapping[str, str], **options: Any) -> dict[str, Any]:
            return {
                name: kind(name, description=text, tag_keys=LABELS.get(name, ()), **options)
                for name, text in table.items()
            }

        self._counters = made(ray_metrics.Counter, COUNTERS)
        self._gauges = made(ray_metrics.Gauge, GAUGES)
        self._histograms = made(ray_metrics.Histogram, HISTOGRAMS, boundaries=list(BUCKETS))

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        """Add to a counter."""
        self._counters[name].inc(amount, tags=labels)

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Set a gauge."""
        self._gauges[name].set(value, tags=labels)

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Add to a histogram."""
        self._histograms[name].observe(value, tags=labels)


def log_to_stderr() -> None:
    """One JSON line a request on standard error, where Ray keeps a replica's log."""
    logger = logging.getLogger("clinfuse.serve")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))


def note_drift(metrics: Metrics, case: Case, result: FusionResult, training: Mapping[str, Any]) -> None:
    """Moving means of what is unsure and of what comes in, over the voxels of the head.

    Args:
        metrics: of this replica.
        case, result: of one request.
        training: "anatomy" and "companion" → {"mean", "std"} over training cases of a case's mean intensity in the
            head, as in the model's facts; without it the drift is not known and not told.
    """
    from clinfuse.case import HEAD_LEVEL
    from clinfuse.intensity import head_means

    means = head_means(case)
    if not means:
        return
    head = (case.anatomy > HEAD_LEVEL) | (case.companion > HEAD_LEVEL)
    metrics.drift("clinfuse_unsure_share", float((result.uncertainty[head] > UNSURE).mean()))
    for name, mean in means.items():
        metrics.drift("clinfuse_input_mean", mean, image=name)
        known = training.get(name)
        if known and known.get("std"):
            metrics.drift("clinfuse_input_drift", (mean - known["mean"]) / known["std"], image=name)

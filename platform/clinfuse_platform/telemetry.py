"""Numbers of a running training for Prometheus, through Ray's own exporter (names get its prefix: `ray_clinfuse_…`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clinfuse.training import Batch

GAUGES = {
    "clinfuse_train_step": "optimiser steps done in the phase",
    "clinfuse_train_steps_per_second": "optimiser steps per second since the last report",
    "clinfuse_train_data_wait_share": "share of the time spent waiting for batches, 0 to 1",
    "clinfuse_train_gpu_memory_bytes": "largest GPU memory allocated by this worker",
    "clinfuse_train_term": "a term of the loss (tag term): loss, simple, segmentation, brain, bone, dice, nsd, hd",
}


class Telemetry:
    """Gauges of one worker's phase; tags: run, job, phase, rank. No case id is ever a tag."""

    def __init__(self, run: str, job: str, phase: str, rank: int) -> None:
        from ray.util.metrics import Gauge

        self.tags = {"run": run, "job": job, "phase": phase, "rank": str(rank)}
        keys = tuple(self.tags)
        self._gauges: dict[str, Any] = {
            name: Gauge(name, description=text, tag_keys=(*keys, "term") if name.endswith("_term") else keys)
            for name, text in GAUGES.items()
        }

    def tell(
        self, step: int, steps_per_second: float, data_wait_share: float, logs: Mapping[str, float]
    ) -> None:
        """Set all gauges; values that are not finite are left as they were."""
        values = {
            "clinfuse_train_step": float(step),
            "clinfuse_train_steps_per_second": steps_per_second,
            "clinfuse_train_data_wait_share": data_wait_share,
            "clinfuse_train_gpu_memory_bytes": gpu_memory_bytes(),
        }
        for name, value in values.items():
            self._set(name, value, self.tags)
        for term, value in logs.items():
            if term not in ("step", "seconds"):
                self._set("clinfuse_train_term", value, {**self.tags, "term": term})

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        if math.isfinite(value):
            self._gauges[name].set(value, tags=tags)


class TimedBatches:
    """Batches with the time it took to get them."""

    def __init__(self, batches: Callable[[int], Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        started = time.perf_counter()
        batch = self._batches(step)
        self.seconds += time.perf_counter() - started
        return batch


def gpu_memory_bytes() -> float:
    """Largest memory that torch has allocated on this worker's GPU; 0 without one."""
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0

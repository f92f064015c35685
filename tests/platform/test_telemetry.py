"""Metric names: the dashboard asks only for what training tells; waiting for data is measured."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import torch
from clinfuse_platform.telemetry import GAUGES, Telemetry, TimedBatches

DASHBOARD = Path(__file__).resolve().parents[2] / "platform" / "dashboards" / "clinfuse.json"


def test_the_dashboard_asks_for_names_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(clinfuse_\w+)", target["expr"])
    }
    assert asked == set(GAUGES)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_tags_name_the_job_and_nobody() -> None:
    telemetry = Telemetry("first", "train", "denoiser", 1)
    assert telemetry.tags == {"run": "first", "job": "train", "phase": "denoiser", "rank": "1"}


def test_waiting_for_batches_is_measured() -> None:
    def slow(step: int) -> dict[str, torch.Tensor]:
        time.sleep(0.02)
        return {"anatomy": torch.full((1,), float(step))}

    timed = TimedBatches(slow)
    assert float(timed(3)["anatomy"]) == 3.0
    timed(4)
    assert 0.04 <= timed.seconds < 1.0

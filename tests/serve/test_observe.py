"""Dashboard, log lines and drift: what the people who run the service see, and that no name is in it."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from clinfuse_serve.backend import LocalBackend
from clinfuse_serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, Metrics
from clinfuse_serve.observe import LABELS, RayMetrics, note_drift
from posting import Pair, Start

from clinfuse.case import Case

ROOT = Path(__file__).parents[2]


def test_dashboard_asks_for_metrics_that_exist_and_shows_them_all() -> None:
    board = json.loads((ROOT / "serve" / "dashboards" / "serving.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"clinfuse_\w+", target["expr"])
    }
    assert asked == {*COUNTERS, *GAUGES, *(f"{name}_bucket" for name in HISTOGRAMS)}
    assert "Research use only" in board["description"]


def test_a_request_leaves_one_json_line_without_names(
    local_service: Start, nifti_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    url = local_service()
    files = {role: (path.name, path.read_bytes()) for role, path in nifti_pair.items()}
    with caplog.at_level(logging.INFO, logger="clinfuse.serve"):
        reply = httpx.post(f"{url}/v1/fuse", files=files, trust_env=False, timeout=60)
        files["file"] = files.pop("anatomy")
        httpx.post(f"{url}/infer/clinfuse", files=files, trust_env=False, timeout=60)
        httpx.get(f"{url}/Smith^John", trust_env=False)
        end = time.monotonic() + 30  # a line is written after its answer has left
        while len(caplog.records) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    fused, inferred = (next(line for line in lines if line["route"] == r) for r in ("/v1/fuse", "/infer"))
    assert inferred["members"] == "3/3" and inferred["shape"] == fused["shape"]
    assert fused["request"] == reply.headers["x-request-id"] and fused["status"] == 200
    assert fused["members"] == "3/3" and fused["shape"] == [12, 32, 28] and not fused["degraded"]
    assert {"queue", "prepare", "sample", "combine", "encode"} <= set(fused["phases"])
    assert lines[-1]["route"] == "other" and "Smith" not in caplog.text and "nii" not in caplog.text


class OneDied(LocalBackend):
    """Member 1 is down; another replica was asked for its numbers last when all were up."""

    async def up(self) -> list[bool]:
        return [True, False, True]

    async def snapshots(self, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        other = Metrics()
        other.set("clinfuse_members", 3)
        other.set("clinfuse_members_up", 3)
        return [own, other.snapshot()]


def test_members_up_are_those_of_now(local_service: Start) -> None:
    lines = httpx.get(f"{local_service(backend=OneDied)}/metrics", trust_env=False).text.splitlines()
    assert "clinfuse_members_up 2" in lines and "clinfuse_members 3" in lines


def test_drift_is_told_in_standard_deviations_of_training(tiny_case: Case) -> None:
    head = (tiny_case.anatomy > 0.03) | (tiny_case.companion > 0.03)
    mean = float(tiny_case.anatomy[head].mean())
    result = SimpleNamespace(uncertainty=np.where(head, 0.9, 0.0).astype(np.float32))
    metrics = Metrics()
    note_drift(metrics, tiny_case, result, {"anatomy": {"mean": mean - 0.2, "std": 0.1}})  # type: ignore[arg-type]
    values = {(name, dict(labels).get("image")): v for name, labels, v in metrics.snapshot()["values"]}
    assert values["clinfuse_input_drift", "anatomy"] == pytest.approx(2.0, abs=1e-5)
    assert ("clinfuse_input_drift", "companion") not in values
    assert values["clinfuse_unsure_share", None] == pytest.approx(1.0)
    empty = replace(
        tiny_case, anatomy=np.zeros_like(tiny_case.anatomy), companion=np.zeros_like(tiny_case.anatomy)
    )
    note_drift(metrics, empty, result, {})  # type: ignore[arg-type]


def test_ray_hears_of_every_number() -> None:
    metrics = Metrics(RayMetrics())
    for name in COUNTERS:
        metrics.count(name, 2.0, **dict.fromkeys(LABELS.get(name, ()), "x"))
    for name in GAUGES:
        metrics.drift(name, 0.5, **dict.fromkeys(LABELS.get(name, ()), "x"))
    metrics.observe("clinfuse_seconds", 0.2, phase="fuse")
    assert len(metrics.snapshot()["values"]) == len(COUNTERS) + len(GAUGES)

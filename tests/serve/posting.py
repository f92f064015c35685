"""What several tests of the HTTP contract use: requests by hand, and what every refusal looks like."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

Start = Callable[..., str]
Pair = dict[str, Path]


def get(url: str, path: str, timeout: float = 60) -> httpx.Response:
    return httpx.get(url + path, trust_env=False, timeout=timeout)


def until(url: str, line: str) -> None:
    """Wait for a line of the metrics."""
    end = time.monotonic() + 60
    while line not in get(url, "/metrics").text.splitlines():
        assert time.monotonic() < end, line
        time.sleep(0.02)


def post(
    url: str, files: dict[str, Any], params: dict[str, Any] | str = "{}", **options: Any
) -> httpx.Response:
    """One request: files are paths, bytes, or (name, bytes)."""
    text = params if isinstance(params, str) else json.dumps(params)
    opened = {role: file if isinstance(file, tuple) else named(file) for role, file in files.items()}
    form = {"data": {"params": text}, "files": opened or None}
    return httpx.post(f"{url}/v1/fuse", timeout=120, trust_env=False, **form, **options)


def named(file: Path | bytes) -> tuple[str, bytes]:
    return (file.name, file.read_bytes()) if isinstance(file, Path) else ("x", file)


def masks_of(pair: Pair) -> dict[str, Any]:
    return {roi: pair[roi] for roi in ("brain", "bone", "lesion") if roi in pair}


def refused(reply: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    text = json.dumps(problem)
    for word in words:
        assert word in text, text
    assert "Smith" not in text and "/tmp" not in text and reply.headers["x-request-id"] in problem["instance"]
    return problem

"""A streamed reply that fails after its first step: told as a problem, logged, counted as what it is."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from clinfuse_serve import problems
from clinfuse_serve.calls import Parts
from clinfuse_serve.limits import Limits
from clinfuse_serve.metrics import Metrics, to_text
from clinfuse_serve.middleware import Gate, Guard
from clinfuse_serve.streaming import Final, stream
from fastapi import FastAPI, Request, Response


def streamed(gate: Gate, error: Exception) -> httpx.Response:
    """A streamed reply whose work tells one step and then fails."""
    app = FastAPI()
    app.add_middleware(Guard, gate=gate)

    @app.post("/v1/fuse")
    async def fuse(request: Request) -> Response:
        async def work(tell: object) -> Final:
            tell(0, 3)  # type: ignore[operator]
            await asyncio.sleep(0)
            raise error

        return await stream(request, work)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/fuse")

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [(RuntimeError("broken"), 500, True), (problems.ProblemError(problems.no_members(3, {})), 503, False)],
)
def test_a_failure_after_the_first_step_is_told_logged_and_counted(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, logged: bool
) -> None:
    gate = Gate(Limits(), Metrics())
    with caplog.at_level(logging.INFO, logger="clinfuse.serve"):
        reply = streamed(gate, error)
    told: list[tuple[int, int]] = []
    parts = Parts(lambda done, total: told.append((done, total)))
    parts.feed(reply.content)
    request_id = reply.headers["x-request-id"]
    assert told == [(0, 3)] and parts.reply.status == status
    assert json.loads(parts.reply.content)["instance"] == f"urn:request:{request_id}"
    failures = [record for record in caplog.records if record.exc_info]
    assert bool(failures) is logged and all(request_id in record.getMessage() for record in failures)
    line = json.loads(caplog.records[-1].getMessage())
    assert (line["request"], line["status"]) == (request_id, status)
    text = to_text(gate.metrics.snapshot())
    assert f'clinfuse_requests_total{{route="/v1/fuse",status="{status}"}} 1' in text

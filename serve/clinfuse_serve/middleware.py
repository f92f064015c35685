"""What every request passes before its body is read: name, origin, token, size, queue; and headers on the way out.

A plain ASGI middleware, so that nothing is buffered: a body that grows too large is stopped while it arrives.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException

from clinfuse_serve import problems, security
from clinfuse_serve.limits import Limits
from clinfuse_serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
LOG = logging.getLogger("clinfuse.serve")
KNOWN = (
    *("/v1/fuse", "/v1/presets", "/v1/models", "/v1/examples", "/v1/study", "/healthz", "/metrics"),
    *("/info", "/infer", "/study", "/viewer"),
)


@dataclass
class Gate:
    """What the middleware shares with the service: limits, metrics, and how many requests wait or work."""

    limits: Limits
    metrics: Metrics
    waiting: int = 0

    def retry_after_s(self) -> float:
        """When a place in the queue is likely free: median time of a request, at least 1 s."""
        return max(1.0, self.metrics.quantile("clinfuse_seconds", 0.5, 1.0, phase="fuse"))


class Guard:
    """The middleware."""

    def __init__(self, app: App, gate: Gate, digest: str | None = None, loopback_only: bool = True) -> None:
        self.app, self.gate, self.digest, self.loopback_only = app, gate, digest, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, count, pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, start = uuid4().hex[:16], time.monotonic()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def finish(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_headers(message.get("headers", []), request_id)}
            await send(message)

        try:
            await self._checked(scope, receive, finish, request_id)
        except Exception as error:
            LOG.exception("request %s failed", request_id)
            if status:
                raise
            await _reply(finish, problems.from_error(error), request_id)
        finally:
            self._tell(scope, status, time.monotonic() - start)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request and log one line; of a streamed reply, what came of it after its first step."""
        state, route = scope["state"], route_of(scope["path"])
        outcome = state.get("outcome", status)
        self.gate.metrics.count("clinfuse_requests_total", route=route, status=str(outcome))
        facts = {"request": state["request_id"], "method": scope["method"], "route": route, "status": outcome}
        LOG.info(json.dumps({**facts, "seconds": round(seconds, 4), **state.get("facts", {})}))

    async def _checked(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        problem = self._refusal(scope, headers)
        if problem is not None:
            await _reply(send, problem, request_id)
            return
        if not is_work(scope):
            await self.app(scope, self._bounded(receive), send)
            return
        self.gate.waiting += 1
        try:
            await self.app(scope, self._bounded(receive), send)
        finally:
            self.gate.waiting -= 1

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> problems.Problem | None:
        gate, host = self.gate, headers.get("host")
        if security.foreign_host(host, self.loopback_only):
            return problems.forbidden("another host's name")
        if security.foreign_origin(headers.get("origin"), host):
            return problems.forbidden("a page of another site")
        if not security.is_open(scope["path"]) and not security.authorized(
            headers.get("authorization"), self.digest
        ):
            return problems.unauthorized()
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > gate.limits.body_bytes:
            return problems.too_large(gate.limits.body_bytes)
        if is_work(scope) and gate.waiting >= gate.limits.queue:
            return problems.queue_full(gate.limits.queue, gate.retry_after_s())
        return None

    def _bounded(self, receive: Receive) -> Receive:
        limit, seen = self.gate.limits.body_bytes, 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413)
            return message

        return bounded


def is_work(scope: Scope) -> bool:
    """Whether a request fuses, and so takes a place in the queue."""
    method, path = scope["method"], scope["path"]
    if method == "GET":
        return route_of(path) == "/v1/study" and path.endswith("/fused")
    return method == "POST" and route_of(path) in ("/v1/fuse", "/infer")


def route_of(path: str) -> str:
    """The route without anything a client chose, for metrics and logs."""
    return next((r for r in KNOWN if path == r or path.startswith(r + "/")), "/" if path == "/" else "other")


async def _reply(send: Send, problem: problems.Problem, request_id: str) -> None:
    body = problem.body(request_id)
    headers = {"Content-Type": problems.MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers}
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _with_headers(raw: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    present = {key.lower() for key, _ in raw}
    extra = {**security.SECURITY_HEADERS, "X-Request-Id": request_id}
    return [*raw, *((k.encode(), v.encode()) for k, v in extra.items() if k.lower().encode() not in present)]

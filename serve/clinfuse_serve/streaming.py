"""Replies that tell of progress: multipart/mixed, a JSON part per step, then the zip bundle, or a problem; and work
that stops when nobody waits for it any more.

    --clinfuse
    Content-Type: application/json
    Content-Length: 22

    {"done": 3, "all": 18}
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from clinfuse_serve import problems
from clinfuse_serve.problems import Problem, ProblemError

BOUNDARY = "clinfuse"
MEDIA_TYPE = f"multipart/mixed; boundary={BOUNDARY}"
LOOK_S = 0.25
LOG = logging.getLogger("clinfuse.serve")
Result = TypeVar("Result")
Final = tuple[bytes, str, Mapping[str, str]]
Step = tuple[int, int]


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The work's result; the work is cancelled once the client has closed the connection."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                raise ProblemError(Problem(status=499, title="the client has gone"))
        return task.result()
    finally:
        if not task.done():
            task.cancel()


async def stream(
    request: Request, work: Callable[[Callable[[int, int], None]], Awaitable[Final]]
) -> StreamingResponse:
    """A streamed reply of some work.

    Args:
        request: whose log line and count tell what came of the work, though the reply itself began with 200.
        work: called with `tell(done, all)`; gives the last part's bytes, media type and headers.

    Returns:
        The reply, once the work has told its first step: what fails before is raised, and answered as a problem.
    """
    steps: asyncio.Queue[Step | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(done: int, total: int) -> None:
        loop.call_soon_threadsafe(steps.put_nowait, (done, total))

    task = asyncio.ensure_future(work(tell))
    task.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        first = await steps.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if first is None and task.exception() is not None:
        task.result()
    return StreamingResponse(_parts(request, task, steps, first), media_type=MEDIA_TYPE)


async def _parts(
    request: Request, task: asyncio.Future[Final], steps: asyncio.Queue[Step | None], first: Step | None
) -> AsyncIterator[bytes]:
    step = first
    try:
        while step is not None:
            facts = json.dumps({"done": step[0], "all": step[1]}).encode()
            yield part(facts, "application/json", {})
            step = await steps.get()
        try:
            yield part(*task.result())
        except Exception as error:
            yield _failed(request, error)
        yield f"--{BOUNDARY}--\r\n".encode()
    finally:
        task.cancel()


def _failed(request: Request, error: Exception) -> bytes:
    """The problem as last part; the log tells what nobody foresaw, as it does of replies that are not streamed."""
    request_id, problem = request.state.request_id, problems.from_error(error)
    request.state.outcome = int(problem.status)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        LOG.error("request %s failed", request_id, exc_info=error)
    headers = {"X-Status": f"{problem.status:d}", **problem.headers}
    return part(problem.body(request_id), problems.MEDIA_TYPE, headers)


def part(data: bytes, media: str, headers: Mapping[str, str]) -> bytes:
    """One part with its length, so that a reader need not search for the boundary."""
    lines = {"Content-Type": media, "Content-Length": str(len(data)), **headers}
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return f"--{BOUNDARY}\r\n{head}\r\n".encode("latin-1") + data + b"\r\n"

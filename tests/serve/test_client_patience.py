"""The client repeats what can succeed later, and nothing else; against a real little HTTP server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from clinfuse_serve.calls import Parts
from clinfuse_serve.client import AsyncClient, Client, ServiceError
from clinfuse_serve.streaming import part

from clinfuse.errors import InputError

Answer = tuple[int, dict[str, str], bytes]
PRESETS = json.dumps([{"name": "balanced", "description": "", "alpha": 1.0}]).encode()


@contextmanager
def server(answers: list[Answer]) -> Iterator[tuple[str, list[str]]]:
    """Answers requests in turn; yields its URL and the Authorization headers it saw."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            status, headers, body = answers[min(len(seen), len(answers)) - 1]
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", seen
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_full_and_restarting_services_are_asked_again() -> None:
    pauses: list[float] = []
    answers: list[Answer] = [
        (429, {"Retry-After": "7"}, b"{}"),
        (503, {}, b""),
        (500, {}, b"proxy"),
        (200, {}, PRESETS),
    ]
    with server(answers) as (url, seen), Client(url, "t" * 20, sleep=pauses.append) as client:
        assert client.presets()[0].name == "balanced"
    assert seen == [f"Bearer {'t' * 20}"] * 4
    assert 7 <= pauses[0] <= 8.4 and pauses[1] < pauses[0]


def test_a_refusal_is_final_and_keeps_its_reasons() -> None:
    problem = {
        "title": "empty brain mask",
        "expected": "brain",
        "found": "nothing",
        "todo": "look",
        "status": 422,
    }
    body = json.dumps(problem).encode()
    with (
        server([(422, {"Content-Type": "application/problem+json"}, body)]) as (url, seen),
        Client(url) as client,
        pytest.raises(
            ServiceError, match="empty brain mask; expected brain; found nothing; to do look"
        ) as caught,
    ):
        client.presets()
    assert len(seen) == 1 and caught.value.status == 422 and caught.value.problem == problem
    here, there = multiprocessing.Pipe()
    here.send(caught.value)
    assert there.recv().problem == problem, "lost between processes"


def test_the_applications_own_500_is_final() -> None:
    with (
        server([(500, {"Content-Type": "application/problem+json"}, b"{}")]) as (url, seen),
        Client(url) as client,
        pytest.raises(ServiceError, match="HTTP 500"),
    ):
        client.presets()
    assert len(seen) == 1


def test_patience_ends() -> None:
    with (
        server([(503, {}, b"")]) as (url, seen),
        Client(url, retries=2, sleep=lambda _: None) as client,
        pytest.raises(ServiceError, match="HTTP 503"),
    ):
        client.presets()
    assert len(seen) == 3


def test_nobody_there() -> None:
    with server([(200, {}, PRESETS)]) as (url, _):
        pass
    with Client(url, retries=1, sleep=lambda _: None) as client:
        with pytest.raises(ServiceError, match="nobody answers"):
            client.presets()
        with pytest.raises(ServiceError, match="nobody answers"):
            client.health()


def test_files_that_are_not_there_never_leave() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(InputError, match="anatomy image is missing"):
            client.fuse("none.nii", b"x")
        with pytest.raises(InputError, match="no such mask"):
            client.fuse(b"x", b"x", masks={"liver": b"x"})


def test_the_async_client_is_as_patient() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def ask(url: str) -> str:
        async with AsyncClient(url, "t" * 20, sleep=sleep) as client:
            return (await client.presets())[0].name

    with server([(429, {"Retry-After": "7"}, b"{}"), (503, {}, b""), (200, {}, PRESETS)]) as (url, seen):
        assert asyncio.run(ask(url)) == "balanced"
    assert seen == [f"Bearer {'t' * 20}"] * 3 and 7 <= pauses[0] <= 8.4 and pauses[1] < pauses[0]


def test_a_streamed_reply_is_read_however_it_is_cut() -> None:
    body = part(b'{"done": 1, "all": 2}', "application/json", {}) + part(
        b"PK\r\n\r\n--", "application/zip", {"X-A": "b"}
    )
    for size in (1, 7, len(body)):
        told: list[tuple[int, int]] = []
        parts = Parts(lambda done, total, told=told: told.append((done, total)))  # type: ignore[misc]
        for start in range(0, len(body), size):
            parts.feed(body[start : start + size])
        assert told == [(1, 2)] and parts.reply.ok
        assert parts.reply.content == b"PK\r\n\r\n--" and parts.reply.headers["x-a"] == "b"
    early = Parts(lambda *_: None)
    early.feed(body[:20])
    assert early.reply.status == 0


def test_a_large_reply_is_held_once_while_it_arrives() -> None:
    """Its pieces are joined in place: at no time is what has arrived copied to take one more piece."""
    data, piece = bytes(8 << 20), 64 << 10
    body, parts = part(data, "application/zip", {}), Parts(lambda *_: None)
    tracemalloc.start()
    try:
        for start in range(0, len(data), piece):
            parts.feed(body[start : start + piece])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parts.reply.status == 0 and peak < 1.5 * len(data)
    parts.feed(body[len(data) :])
    assert parts.reply.content == data

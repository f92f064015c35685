"""What tests of a service on Ray share: its replicas' processes, whole answers."""

from __future__ import annotations

import time
from typing import Any

import psutil
from clinfuse_serve.client import Client, FusedReply
from posting import Pair, masks_of


def fuse(client: Client, pair: Pair, **params: Any) -> FusedReply:
    return client.fuse(pair["anatomy"], pair["companion"], masks=masks_of(pair), **params)


def processes(deployment: str) -> list[psutil.Process]:
    """Replica processes of a deployment of this test's own Ray."""
    title = f"ray::ServeReplica:clinfuse:{deployment}"
    return [
        p for p in psutil.Process().children(recursive=True) if p.cmdline()[:1] and title in p.cmdline()[0]
    ]


def until_whole(client: Client, pair: Pair, **params: Any) -> None:
    """Ask until no member is missing any more."""
    deadline = time.monotonic() + 180
    while fuse(client, pair, **params).degraded:
        assert time.monotonic() < deadline, "the member did not come back"
        time.sleep(0.5)

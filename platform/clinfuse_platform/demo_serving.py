"""The demo's service: `clinfuse serve` as a child process on the open Ray session, waited for, then stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clinfuse.errors import ClinfuseError

READY_SECONDS = 300.0
STOP_SECONDS = 20.0


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(words: Sequence[str], *, address: str, log: Path) -> Iterator[str]:
    """Run `clinfuse serve …` until the block ends; yields the service's URL once it answers /healthz.

    Args:
        words: the verb's arguments, `--port` with its number among them, without the address.
        address: the Ray session to deploy on.
        log: file for the child's output.

    Raises:
        ClinfuseError: the child ended, or did not answer in time; with the last lines of its output.
    """
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    command = [sys.executable, "-m", "clinfuse_platform.cli", "serve", *words, "--address", address]
    with log.open("wb") as sink:
        child = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(url, child, log)
            yield url
        finally:
            _stop(child)


def _wait_until_healthy(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ClinfuseError(f"the service ended with code {child.returncode}: {_tail(log)}")
        if _answers(f"{url}/healthz"):
            return
        time.sleep(0.25)
    raise ClinfuseError(f"the service did not answer within {READY_SECONDS:.0f} s: {_tail(log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(child: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            return
        child.send_signal(sign)
        try:
            child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path, lines: int = 8) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

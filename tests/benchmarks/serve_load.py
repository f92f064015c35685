"""Saturation with accidents: `python tests/benchmarks/serve_load.py --seconds 120 --clients 6`.

Clients ask without pause while a member is killed after a third of the time and an aggregator after two thirds
(SIGKILL). Counts requests, degraded replies and lost ones, latency before, between and after. Then `--flat` quick
requests, each a new pair, and the memory of all processes after a fifth of them and at the end. Writes
tests/benchmarks/results/serve_load.md; fails if a request was lost or memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from clinfuse.errors import ClinfuseError
from serve import memory_mb, slices, untrained

RESULT = Path(__file__).parent / "results" / "serve_load.md"
PERIODS = ("before", "a member killed", "an aggregator killed")


@dataclass(frozen=True)
class Asked:
    """One request: when it began, how long it took, whether it was degraded; None if it was lost."""

    begun: float
    seconds: float
    degraded: bool | None


def ask_until(url: str, images: dict[str, bytes], end: float, log: list[Asked], lost: list[str]) -> None:
    """One client without pause."""
    from clinfuse_serve.client import Client

    with Client(url, retries=12) as client:
        seed = 0
        while (begun := time.monotonic()) < end:
            seed += 1
            try:
                facts = client.describe(
                    images["anatomy"], images["companion"], masks={"brain": images["brain"]}, seed=seed
                )
                log.append(Asked(begun, time.monotonic() - begun, facts.degraded))
            except ClinfuseError as error:
                lost.append(str(error))
                log.append(Asked(begun, time.monotonic() - begun, None))


def kill(deployment: str) -> None:
    """SIGKILL one replica of a deployment of this run's own Ray."""
    title = f"ray::ServeReplica:clinfuse:{deployment}"
    for process in psutil.Process().children(recursive=True):
        if (process.cmdline() or [""])[0].startswith(title):
            os.kill(process.pid, signal.SIGKILL)
            return


def run(
    url: str, images: dict[str, bytes], seconds: float, clients: int
) -> tuple[list[Asked], list[str], float]:
    """The whole ordeal; returns requests, errors of lost ones and the time it began."""
    log: list[Asked] = []
    lost: list[str] = []
    begun = time.monotonic()
    workers = [
        threading.Thread(target=ask_until, args=(url, images, begun + seconds, log, lost))
        for _ in range(clients)
    ]
    for worker in workers:
        worker.start()
    for share, deployment in ((1 / 3, "Member1"), (2 / 3, "Aggregator")):
        time.sleep(max(0.0, begun + share * seconds - time.monotonic()))
        kill(deployment)
    for worker in workers:
        worker.join()
    return log, lost, begun


def flat(url: str, images: dict[str, bytes], requests: int) -> dict[str, float]:
    """Memory after a fifth of many requests and after all; every one is a pair that the service has not seen."""
    from clinfuse_serve.client import Client

    facts = {"flat requests": float(requests)}
    with Client(url) as client:
        while client.health().status != "ok":  # the killed ones are back, their memory counts
            time.sleep(1)
        for index in range(requests):
            fresh = {role: data + index.to_bytes(4, "big") for role, data in images.items()}
            client.describe(
                fresh["anatomy"], fresh["companion"], masks={"brain": fresh["brain"]}, members=1, steps=1
            )
            if index + 1 == requests // 5:
                facts["memory early"] = memory()
    return facts | {"memory late": memory()}


def memory() -> float:
    """MB of all processes, proportional set size."""
    return float(sum(memory_mb(psutil.Process()).values()))


def report(log: list[Asked], lost: list[str], begun: float, seconds: float, facts: dict[str, float]) -> str:
    """Markdown."""
    lines = [
        "# Saturation with accidents",
        "",
        f"{facts['clients']:.0f} clients without pause for {seconds:.0f} s, {os.cpu_count()} cores, 256² pairs; "
        "SIGKILL of one of three members at one third, of one of two aggregators at two thirds of the time.",
        "",
        "| period | requests | degraded | lost | p50, s | p99, s | worst, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for index, name in enumerate(PERIODS):
        rows = [a for a in log if min(2, int(3 * (a.begun - begun) / seconds)) == index]
        times = sorted(a.seconds for a in rows)
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        degraded, gone = sum(a.degraded is True for a in rows), sum(a.degraded is None for a in rows)
        figures = f"{statistics.median(times):.2f} | {p99:.2f} | {times[-1]:.2f}"
        lines.append(f"| {name} | {len(rows)} | {degraded} | {gone} | {figures} |")
    lines += [
        "",
        f"Memory (PSS of all processes) over {facts['flat requests']:.0f} further requests, each a new 256² pair: "
        f"{facts['memory early']:.0f} MB after a fifth of them, {facts['memory late']:.0f} MB after all.",
    ]
    return "\n".join([*lines, *sorted(set(lost))]) + "\n"


def main() -> int:
    """Run, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--flat", type=int, default=1000, help="requests over which memory must not grow")
    arguments = parser.parse_args()
    from clinfuse_prep.session import session
    from clinfuse_serve.deploy import start

    with tempfile.TemporaryDirectory() as name:
        model = untrained(Path(name))
        images = {role: path.read_bytes() for role, path in slices(Path(name)).items()}
        with session(), start(model, port=0) as handle:
            ask_until(handle.url, images, time.monotonic() + 5, [], [])
            log, lost, begun = run(handle.url, images, arguments.seconds, arguments.clients)
            facts = {"clients": arguments.clients, **flat(handle.url, images, arguments.flat)}
    text = report(log, lost, begun, arguments.seconds, facts)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 1 if lost or facts["memory late"] > 1.05 * facts["memory early"] else 0


if __name__ == "__main__":
    sys.exit(main())

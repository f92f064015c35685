"""What the HTTP front costs: `python tests/benchmarks/serve_front.py`.

The same tiny service behind Ray Serve's own proxy and behind HAProxy (RAY_SERVE_ENABLE_HA_PROXY), one after the
other: median of GET /v1/presets (no work) and of fusing a kept 256² pair with one step of one member. Writes
tests/benchmarks/results/serve_front.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serve import slices, untrained

RESULT = Path(__file__).parent / "results" / "serve_front.md"
FRONTS = {
    "Ray Serve's proxy": {},
    "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_MAXCONN": "4000"},
}


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds, the first three left out."""
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[3:])


def one_front(repeats: int) -> dict[str, float]:
    """Medians behind the front that the environment asks for."""
    from clinfuse_prep.session import session
    from clinfuse_serve.client import Client
    from clinfuse_serve.deploy import start

    with tempfile.TemporaryDirectory() as name:
        model, pair = untrained(Path(name)), slices(Path(name))
        with session(), start(model, 1, port=0, aggregators=1) as handle, Client(handle.url) as client:
            case = client.describe(pair["anatomy"], pair["companion"], masks={"brain": pair["brain"]}).case
            return {
                "GET /v1/presets, ms": timed(client.presets, repeats),
                "fuse, 1 step, ms": timed(lambda: client.describe(case=case, steps=1), repeats),
            }


def main() -> int:
    """Run both fronts in processes of their own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--one", action="store_true", help="only the front of this environment, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write("\n" + json.dumps(one_front(arguments.repeats)) + "\n")
        return 0
    command = [sys.executable, __file__, "--one", "--repeats", str(arguments.repeats)]
    rows = {}
    for name, settings in FRONTS.items():
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600, check=True
        )
        rows[name] = json.loads(done.stdout.strip().splitlines()[-1])
    columns = list(next(iter(rows.values())))
    lines = [
        "# The HTTP front",
        "",
        f"Medians of {arguments.repeats}, {os.cpu_count()} cores, one member.",
        "",
    ]
    lines += [f"| front | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.1f}' for c in columns)} |" for name, row in rows.items()]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

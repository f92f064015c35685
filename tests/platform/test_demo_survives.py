"""A demo that is killed in the middle of a step goes on with the same command: in the cohort, and in prep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
WORDS = ["demo", "--recipe", "cpu-debug", "--spacing", "6", "--resume", "--out"]
SECONDS = 300.0


@contextmanager
def demo(out: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process of its own, killed at the end if it still lives."""
    command = [sys.executable, "-m", "clinfuse_platform.cli", *WORDS, str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "not within time"
        time.sleep(0.02)


def steps(out: Path) -> dict[str, dict]:
    """The finished steps by title."""
    return {step["title"]: step for step in json.loads((out / "demo.json").read_text())["steps"]}


def test_a_killed_demo_goes_on_in_the_step_it_was_in(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = out / "cohort.zarr" / "cases"
    with demo(out) as process:
        wait_until((out / "cohort" / "sub-02" / "mr.nii.gz").exists, process)
    assert not (out / "cohort" / "cohort.json").exists(), "killed too late"
    with demo(out) as process:
        wait_until(lambda: cases.is_dir() and any(cases.glob("c*")), process)
    assert list(steps(out)) == ["cohort"], "killed too late"
    with demo(out) as process:
        wait_until(lambda: "prep" in steps(out), process)
    prep = steps(out)["prep"]["result"]
    assert prep["cases"] == 6 and prep["kept"] >= 1 and prep["lost"] == 0

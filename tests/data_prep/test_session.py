"""The session: an open one is used and left open, a local one listens on loopback only, a wrong address is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_sources import synthrad

LISTENERS = """
import json
import psutil
def listeners():
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sorted({c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"})
"""
LOCAL = """
from clinfuse_prep.session import session
with session(cpus=1):
    import ray
    assert ray.is_initialized()
    with session():
        pass
    assert ray.is_initialized(), "an inner session closed the outer one"
    print(json.dumps(listeners()))
assert not ray.is_initialized()
"""
PREP = """
import sys
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep import prep_verb
seen = []
def looking(jobs, cpus):
    import ray
    seen.append((ray.cluster_resources()["CPU"], listeners()))
    return run_jobs(jobs, cpus)
run_jobs, prep_verb.run_jobs = prep_verb.run_jobs, looking
assert run_verb("prep", [*sys.argv[1:], "--workers", "2", "--no-compare"])["cases"] == 2
assert not sys.modules["ray"].is_initialized()
((cpus, addresses),) = seen
assert cpus == 2
print(json.dumps(addresses))
"""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def listened(code: str, *words: str) -> set[str]:
    """The addresses that the code says it and its children listen at."""
    done = python(LISTENERS + code, *words)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.ray
def test_a_local_session_listens_on_loopback_only() -> None:
    addresses = listened(LOCAL)
    assert addresses and addresses <= LOOPBACK


@pytest.mark.ray
def test_so_does_the_one_that_prep_starts_with_as_many_workers_as_asked(tmp_path: Path) -> None:
    addresses = listened(PREP, str(synthrad(tmp_path / "s", 2)), "--out", str(tmp_path / "d.zarr"))
    assert addresses and addresses <= LOOPBACK


def test_no_cluster_at_the_address_is_one_clear_line(tmp_path: Path) -> None:
    run = "from clinfuse_platform.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    words = ["prep", str(synthrad(tmp_path / "s", 1)), "--out", str(tmp_path / "d.zarr")]
    done = python(run, *words, "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray cluster answers at the address" in done.stderr and "Traceback" not in done.stderr

"""The session: an open one is used and left open, a local one listens on loopback only, a wrong address is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = """
import json
import psutil
from clinfuse_platform.session import session
with session(cpus=1):
    import ray
    assert ray.is_initialized()
    with session():
        pass
    assert ray.is_initialized(), "an inner session closed the outer one"
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    open_to = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"}
    print(json.dumps(sorted(open_to)))
assert not ray.is_initialized()
"""


@pytest.mark.ray
def test_a_local_session_listens_on_loopback_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    addresses = set(json.loads(done.stdout.strip().splitlines()[-1]))
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


CONNECT = "from clinfuse_platform.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def test_no_cluster_at_the_address_is_one_clear_line(tiny_store: Path) -> None:
    words = ["evaluate", "mean", "--data", str(tiny_store), "--address", "127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "no Ray cluster answers at the address" in done.stderr and "Traceback" not in done.stderr

"""One cluster of two hosts for all tests here: brought up by `ray up` with the on-prem file, at the end `ray down`."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "cluster.md"
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 8265
spec = importlib.util.spec_from_file_location("cluster_hosts", Path(__file__).with_name("hosts.py"))
assert spec is not None and spec.loader is not None
hosts = importlib.util.module_from_spec(spec)
sys.modules["cluster_hosts"] = hosts
spec.loader.exec_module(hosts)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, where two hosts cannot be made or nobody asked for them."""
    ours = [item for item in items if Path(__file__).parent in Path(item.path).parents]
    reason = hosts.missing() if os.environ.get("CLINFUSE_TEST_CLUSTER") else "run it with make test-cluster"
    for item in ours if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


class Cluster:
    """The two hosts, the filled-in cluster file, and what one types on the laptop.

    Attributes:
        shared: a folder that laptop and hosts see, as NFS would give it.
        times: what took how long, in seconds.
    """

    def __init__(self, made: Any, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.head, self.worker = made.hosts
        self.file, self.shared = folder / "onprem.yaml", folder / "shared"
        self.times: dict[str, float] = {}
        self.shared.mkdir()
        token = folder / "auth_token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = os.environ | {
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.config = self._config(token)
        self.file.write_text(yaml.safe_dump(self.config))

    def _config(self, token: Path) -> dict[str, Any]:
        """platform/clusters/onprem.yaml with this machine's values; the installed environment instead of a new one."""
        config: dict[str, Any] = yaml.safe_load((ROOT / "platform" / "clusters" / "onprem.yaml").read_text())
        config["provider"] |= {"head_ip": self.head.address, "worker_ips": [self.worker.address]}
        config["max_workers"] = 1
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.made.key)}
        config["file_mounts"] = {"~/clinfuse-source": str(ROOT), "~/.ray/auth_token": str(token)}
        config["rsync_exclude"] += ["**/shared", "**/scratch"]
        config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/clinfuse-env", config["setup_commands"][1]]
        for name in ("head_start_ray_commands", "worker_start_ray_commands"):
            # two hosts share this machine's cores: threads that wait must sleep
            config[name][-1] = f"export OMP_WAIT_POLICY=PASSIVE; {config[name][-1]}"
        return config

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block took."""
        started = time.monotonic()
        yield
        self.times[what] = time.monotonic() - started
        sys.stderr.write(f"\n[cluster] {what}: {self.times[what]:.0f} s\n")

    def ray(self, *words: str, timeout: float = 300) -> str:
        """A `ray` command on the laptop, from the repository's root; its output."""
        done = subprocess.run(
            [RAY, *words], capture_output=True, text=True, check=False, timeout=timeout,
            env=self.environment, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def on_head(self, command: str, timeout: float = 300) -> str:
        """A command on the head, as `ray attach` gives a shell there."""
        words = f"export PATH=$HOME/clinfuse-env/bin:$PATH RAY_AUTH_MODE=token; cd {self.shared}; {command}"
        return str(self.head.ssh(words, timeout=timeout))

    def nodes(self) -> int:
        """Nodes alive."""
        code = (
            "import ray; ray.init(address='auto', logging_level='ERROR'); "
            "print('ALIVE', sum(n['Alive'] for n in ray.nodes()))"
        )
        return int(self.on_head(f'python -c "{code}"').split("ALIVE")[1].split()[0])

    def submit(self, command: str, *, wait: bool = True) -> str:
        """`ray job submit` on the head; its output."""
        flag = "" if wait else "--no-wait "
        return self.on_head(
            f"ray job submit --address http://127.0.0.1:{PORT} {flag}-- {command}", timeout=600
        )

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """A port of the head's loopback on the laptop's, through ssh, as `ray attach -p` forwards it."""
        words = [*self.head.ssh_words("-N"), "-L", f"127.0.0.1:{port}:127.0.0.1:{port}"]
        process = subprocess.Popen(words)
        try:
            time.sleep(1)
            yield port
        finally:
            process.terminate()
            process.wait()

    def start_worker(self) -> None:
        """What a returning host runs at boot: the cluster file's own command."""
        command = self.config["worker_start_ray_commands"][-1]
        self.worker.ssh(f"export RAY_HEAD_IP={self.head.address}; cd ~; {command}")


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Look twice a second until it is so."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def waiting() -> Callable[[Callable[[], bool], float, str], None]:
    """`wait_until`, for the tests."""
    return wait_until


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, up."""
    folder = Path("/var/tmp") / f"clinfuse-cluster-{os.getpid()}"
    folder.mkdir()
    try:
        with hosts.Hosts(folder / "net") as made:
            cluster = Cluster(made, folder)
            with cluster.timed("ray up"):
                cluster.ray("up", "-y", "--no-config-cache", str(cluster.file))
            with cluster.timed("second host joined after another"):
                wait_until(lambda: cluster.nodes() == 2, 240, "two nodes")
            yield cluster
            with cluster.timed("ray down"):
                cluster.ray("down", "-y", str(cluster.file))
            if os.environ.get("CLINFUSE_RECORD"):
                record(cluster.times)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def record(times: dict[str, float]) -> None:
    """Keep the times beside the benchmarks' results."""
    rows = [f"| {what} | {seconds:.0f} s |" for what, seconds in times.items()]
    cores = f"Two hosts on one machine of {os.cpu_count()} cores, as network namespaces, over ssh."
    head = ["# A cluster really up", "", "`CLINFUSE_RECORD=1 make test-cluster`", "", cores, ""]
    text = "\n".join([*head, "| what | time |", "| --- | --- |", *rows]) + "\n"
    RESULT.write_text(re.sub(r"/var/tmp/\S+", "…", text), encoding="utf-8")

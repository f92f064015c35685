"""The on-prem file brings up a cluster of two hosts over ssh; work, a host's death and its return; down again.

Run by `make test-cluster` (root and network namespaces needed); skipped otherwise, with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("cluster_hosts", Path(__file__).with_name("hosts.py"))
assert spec is not None and spec.loader is not None
hosts = importlib.util.module_from_spec(spec)
sys.modules["cluster_hosts"] = hosts
spec.loader.exec_module(hosts)

REASON = hosts.missing() if os.environ.get("CLINFUSE_TEST_CLUSTER") else "run it with make test-cluster"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(1800),
]
RAY = str(Path(sys.executable).with_name("ray"))
STEPS = "--set crop=[24,24] --set lesion_steps=6"


class Cluster:
    """The two hosts, the filled-in cluster file, and what one types on the laptop."""

    def __init__(self, made: Any, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.head, self.worker = made.hosts
        self.file, self.shared = folder / "onprem.yaml", folder / "shared"
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
        self._write(token)

    def _write(self, token: Path) -> None:
        """platform/clusters/onprem.yaml with this machine's values; the installed environment instead of a new one."""
        config = yaml.safe_load((ROOT / "platform" / "clusters" / "onprem.yaml").read_text())
        config["provider"] |= {"head_ip": self.head.address, "worker_ips": [self.worker.address]}
        config["max_workers"] = 1
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.made.key)}
        config["file_mounts"] = {"~/clinfuse-source": str(ROOT), "~/.ray/auth_token": str(token)}
        config["rsync_exclude"] += ["**/shared", "**/scratch"]
        config["setup_commands"] = [
            f"ln -sfn {sys.prefix} ~/clinfuse-env",
            config["setup_commands"][1],
        ]
        self.file.write_text(yaml.safe_dump(config))

    def ray(self, *words: str, timeout: float = 600) -> str:
        done = subprocess.run(
            [RAY, *words], capture_output=True, text=True, check=False, timeout=timeout,
            env=self.environment, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def up(self) -> None:
        self.ray("up", "-y", "--no-config-cache", str(self.file))

    def on_head(self, command: str, timeout: float = 600) -> str:
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

    def wait_for(self, nodes: int, seconds: float = 240) -> float:
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.nodes() >= nodes:
                return time.monotonic() - started
            time.sleep(3)
        raise AssertionError(f"not {nodes} nodes after {seconds:.0f} s")

    def submit(self, command: str, *, wait: bool = True) -> str:
        """`ray job submit` on the head; its output."""
        flag = "" if wait else "--no-wait "
        return self.on_head(f"ray job submit --address http://127.0.0.1:8265 {flag}-- {command}", timeout=900)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = Path("/var/tmp") / f"clinfuse-cluster-{os.getpid()}"
    folder.mkdir()
    with hosts.Hosts(folder / "net") as made:
        cluster = Cluster(made, folder)
        started = time.monotonic()
        cluster.up()
        note("ray up", time.monotonic() - started)
        note("worker joined after", cluster.wait_for(2))
        yield cluster
        started = time.monotonic()
        cluster.ray("down", "-y", str(cluster.file))
        note("ray down", time.monotonic() - started)
    subprocess.run(["rm", "-rf", str(folder)], check=False)


def note(what: str, seconds: float) -> None:
    sys.stderr.write(f"\n[cluster] {what}: {seconds:.0f} s\n")


def test_every_node_has_the_same_versions_and_sees_the_storage(cluster: Cluster) -> None:
    told = cluster.on_head(f"clinfuse doctor --cluster --address auto --storage {cluster.shared}/runs --json")
    states = {check["name"]: check["status"] for check in json.loads(told)["checks"]}
    assert states["node 1"] == states["node 2"] == states["versions"] == "ok"


def test_without_the_token_nobody_gets_in(cluster: Cluster) -> None:
    told = cluster.head.ssh(
        "cd /; export PATH=$HOME/clinfuse-env/bin:$PATH; RAY_AUTH_TOKEN=wrong RAY_AUTH_MODE=token "
        "timeout 60 ray job list --address http://127.0.0.1:8265 2>&1; echo EXIT $?",
        check=False,
    )
    assert "EXIT 0" not in told


def test_prep_and_training_over_both_hosts_survive_the_loss_of_one(cluster: Cluster) -> None:
    shared = cluster.shared
    cluster.on_head(f"clinfuse cohort --out {shared}/cohort --patients 6 --spacing 4", timeout=900)
    started = time.monotonic()
    cluster.submit(f"clinfuse prep {shared}/cohort --layout cohort --out {shared}/d.zarr --address auto")
    note("job submit of prep", time.monotonic() - started)
    train = (
        f"clinfuse train {shared}/d.zarr --recipe cpu-debug --run first --storage {shared}/runs --workers 2 "
        f"--cpus-per-worker 1 --address auto {STEPS} --set denoiser_steps=400"
    )
    cluster.submit(train, wait=False)
    progress = shared / "runs" / "first" / "progress-train.json"
    wait_until(lambda: told(progress).get("phase") == "denoiser", 600)
    killed_at = time.monotonic()
    cluster.worker.kill()
    time.sleep(5)
    cluster.worker.start()
    cluster.up()
    note("host back after", time.monotonic() - killed_at)
    state = shared / "runs" / "first" / "state.json"
    wait_until(lambda: told(state).get("train", {}).get("state") in ("finished", "failed"), 900)
    note("training over after", time.monotonic() - killed_at)
    assert told(state)["train"]["state"] == "finished", told(state)
    assert (shared / "runs" / "first" / "model" / "model_index.json").exists()


def told(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def wait_until(true: Any, seconds: float) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.5)

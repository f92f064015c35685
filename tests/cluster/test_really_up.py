"""The on-prem file brings up two hosts over ssh: prep, training that outlives a host, a sweep, serving, down again.

Run by `make test-cluster` (root and network namespaces needed); skipped otherwise, with the reason. The tests follow
each other, as the work does.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clinfuse_platform.verb_table import run_verb

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STEPS = "--set crop=[24,24] --set lesion_steps=6 --set denoiser_steps=60"
SERVICE_PORT = 8100
ROOMS = ("clinfuse", "data_prep", "platform", "sweeps", "serve")
LOOPBACK = ("127.0.0.1", "::1")


def told(file: Path) -> dict[str, Any]:
    """A JSON file's content, or nothing while it is not there."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def test_every_node_has_the_same_versions_and_sees_the_storage(cluster: Any) -> None:
    said = cluster.on_head(f"clinfuse doctor --cluster --address auto --storage {cluster.shared}/runs --json")
    states = {check["name"]: check["status"] for check in json.loads(said)["checks"]}
    assert states["node 1"] == states["node 2"] == states["versions"] == "ok"


def test_of_the_checkout_s_folders_only_the_code_s_reach_the_hosts(cluster: Any) -> None:
    for host in (cluster.head, cluster.worker):
        assert set(host.ssh("cd ~/clinfuse-source && ls -Ad */").split()) == {f"{room}/" for room in ROOMS}


def test_without_the_token_nobody_gets_in_and_the_dashboard_is_on_loopback(
    cluster: Any, waiting: Any
) -> None:
    def places() -> list[str]:
        return list(cluster.head.ssh("ss -Hltn '( sport = :8265 )' | awk '{print $4}'").split())

    waiting(lambda: bool(places()), 120, "the dashboard")
    assert all(place.removeprefix("[::ffff:").startswith("127.0.0.1") for place in places()), places()
    ask = "timeout 60 ray job list --address http://127.0.0.1:8265 2>&1; echo EXIT $?"
    assert "EXIT 0" in cluster.on_head(ask)
    assert "EXIT 0" not in cluster.on_head(f"export RAY_AUTH_TOKEN=wrong; {ask}")


def test_no_open_port_answers_whoever_has_no_token(cluster: Any) -> None:
    asked = ("", "metrics", "api/version", "api/jobs/", "api/cluster_status", "nodes?view=summary")
    for host in (cluster.head, cluster.worker):
        places = [place.rpartition(":") for place in host.ssh("ss -Hltn | awk '{print $4}'").split()]
        ports = {int(port) for address, _, port in places if not address.strip("[]").endswith(LOOPBACK)}
        assert ports - {22}, "nothing listens: nothing is seen"
        for port in sorted(ports - {22}):
            said = {path: answer(f"http://{host.address}:{port}/{path}") for path in asked}
            assert not any(200 <= code < 300 for code in said.values()), (port, said)


def answer(url: str) -> int:
    """The status that an HTTP request gets there without a token; 0 where nobody speaks HTTP."""
    try:
        with urllib.request.urlopen(url, timeout=3) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def test_a_laptop_s_code_prepares_the_data(cluster: Any) -> None:
    shared = cluster.shared
    run_verb("cohort", ["--out", f"{shared}/cohort", "--patients", "5", "--spacing", "5"])
    job = (
        f"ls -A && python -c 'import clinfuse_prep; print(clinfuse_prep.__file__)' && "
        f"clinfuse prep {shared}/cohort --layout cohort --out {shared}/d.zarr --address auto"
    )
    with cluster.tunnel(8265) as port, cluster.timed("job submit of prep, from a laptop with its code"):
        said = cluster.ray(
            "job", "submit", "--address", f"http://127.0.0.1:{port}",
            "--runtime-env", "platform/clusters/job.yaml", "--", "bash", "-c", job,
        )  # fmt: skip
    lines = said.splitlines()
    assert set(ROOMS) <= set(lines) and not {"pyproject.toml", "tests", ".git"} & set(lines)
    assert any("working_dir_files" in line and line.endswith("clinfuse_prep/__init__.py") for line in lines)
    assert len(pd.read_parquet(shared / "d.zarr" / "manifest.parquet")) == 5


def test_training_over_both_hosts_outlives_one(cluster: Any, waiting: Any) -> None:
    shared, run = cluster.shared, cluster.shared / "runs" / "first"
    train = (
        f"clinfuse train {shared}/d.zarr --recipe cpu-debug --run first --storage {shared}/runs --workers 2 "
        f"--cpus-per-worker {os.cpu_count()} --address auto {STEPS}"  # a host holds one such worker
    )
    with cluster.timed("job submit of training to its second phase, a worker on each host"):
        cluster.submit(train, wait=False)
        waiting(lambda: told(run / "progress-train.json").get("phase") == "denoiser", 300, "training")
        waiting(lambda: len(kept(run)) > 0, 60, "a checkpoint of the second phase")
    before = kept(run)[-1]
    died = time.monotonic()
    cluster.worker.kill()
    with cluster.timed("lost host noticed"):
        waiting(lambda: cluster.nodes() == 1, 240, "the loss noticed")
    with cluster.timed("lost host back"):
        cluster.worker.start()
        cluster.start_worker()
        waiting(lambda: cluster.nodes() == 2, 120, "two nodes again")
    last = before["step"]
    with cluster.timed("training goes on after the return"):
        waiting(lambda: progressed(run, last), 240, "progress")
    waiting(lambda: told(run / "state.json")["train"]["state"] != "running", 600, "the end of training")
    cluster.times["training over, since the host died"] = time.monotonic() - died
    assert told(run / "state.json")["train"]["state"] == "finished", told(run / "state.json")
    assert told(run / "model" / "metadata.json")["facts"]["workers"] == 2
    rows = pd.read_parquet(run / "metrics.parquet").query("phase == 'lesion_head'")["elapsed"].tolist()
    assert rows == [row["elapsed"] for row in before["history"] if row["phase"] == "lesion_head"], (
        "began anew"
    )


def kept(run: Path) -> list[dict[str, Any]]:
    """Positions of the kept checkpoints that the second phase has written, oldest first."""
    found = [told(file) for file in run.glob("checkpoints-*/checkpoint_2*/position.json")]
    return sorted((p for p in found if p.get("phase") == "denoiser"), key=lambda position: position["step"])


def progressed(run: Path, step: int) -> bool:
    """Whether a later checkpoint than that is there, or the training is over."""
    return told(run / "state.json")["train"]["state"] != "running" or any(p["step"] > step for p in kept(run))


def test_a_sweep_runs_on_the_cluster(cluster: Any) -> None:
    shared = cluster.shared
    sweep = (
        f"clinfuse sweep first --storage {shared}/runs --data {shared}/d.zarr --presets balanced --trials 2 "
        f"--cases 1 --slices 8 --steps 2 --out {shared}/sweep --address auto"
    )
    with cluster.timed("job submit of a sweep of 2 trials"):
        cluster.submit(sweep)
    assert len(pd.read_parquet(shared / "sweep" / "trials.parquet")) == 2


def test_a_service_on_the_cluster_fuses_over_http(cluster: Any, waiting: Any) -> None:
    shared, patient = cluster.shared, cluster.shared / "cohort" / "sub-01"
    secret = shared / "service_token"
    secret.write_text("a-token-of-this-test-only-0123456789")
    serve = (
        f"clinfuse serve {shared}/runs/first/model --port {SERVICE_PORT} --token-file {secret} --address auto"
    )
    with cluster.tunnel(SERVICE_PORT) as port:
        url = f"http://127.0.0.1:{port}"
        with cluster.timed("job submit of the service until it answers"):
            cluster.submit(serve, wait=False)
            waiting(lambda: answers(f"{url}/healthz"), 240, "the service")
        images = f"--anatomy {patient}/mr.nii.gz --companion {patient}/ct.nii.gz"
        masks = f"--brain {patient}/brain.nii.gz --bone {patient}/bone.nii.gz"
        words = f"{images} {masks} --steps 2 --url {url} --token-file {secret} --out {shared}/fused"
        with cluster.timed("fuse request over HTTP, from a laptop"):
            result = run_verb("fuse", words.split())
    assert Path(result["result"]).exists() and result["info"]["steps"] == 2
    (told_of,) = run_verb("runs", ["show", "first", "--storage", f"{shared}/runs"])["runs"]
    assert {one["use"] for one in told_of["lineage"]["models"]["model"]["uses"]} == {"sweep", "serve"}


def answers(url: str) -> bool:
    """Whether something says there that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False

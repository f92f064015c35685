"""Eight simulated nodes on this machine: tasks of a tenth of a CPU reach all of them, prep and a sweep run across them,
and a training that may shrink outlives one of them."""

from __future__ import annotations

import json
import os
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from clinfuse_platform.runs import find_run
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.session import prepare_environment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not os.environ.get("CLINFUSE_TEST_CLUSTER"), reason="minutes long: part of `make test-cluster`"
    ),
]
NODES, TASKS, MIB = 8, 400, 2**20
RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "many_nodes.md"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head with two logical CPUs and seven nodes with one each, connected to."""
    prepare_environment(local=True)
    import ray
    from ray.cluster_utils import Cluster

    args = {"num_cpus": 2, "object_store_memory": 100 * MIB, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    for _ in range(NODES - 1):
        cluster.add_node(wait=False, num_cpus=1, object_store_memory=80 * MIB)
    cluster.wait_for_nodes(timeout=240)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def prepared(nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """A cohort of eight patients, prepared on the cluster."""
    place = tmp_path_factory.mktemp("many")
    run_verb("cohort", ["--out", str(place / "cohort"), "--patients", "8", "--spacing", "6"])
    data = place / "d.zarr"
    words = [str(place / "cohort"), "--layout", "cohort", "--out", str(data), "--cpus-per-case", "0.1"]
    done = run_verb("prep", words)
    return Namespace(place=place, data=data, done=done, hosts=working_nodes())


def working_nodes() -> int:
    """Nodes that have started a worker process."""
    raylets = {p.pid for p in psutil.Process().children(recursive=True) if p.name() == "raylet"}
    parents = set()
    for process in psutil.process_iter(["ppid", "cmdline"]):
        if process.info["ppid"] in raylets and "ray::" in " ".join(process.info["cmdline"] or ()):
            parents.add(process.info["ppid"])
    return len(parents)


def test_small_tasks_reach_every_node(nodes: Any) -> None:
    import ray

    @ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")
    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    def wave() -> list[str]:  # one task a node: more would start a process each
        return list(ray.get([where.remote() for _ in range(NODES)], timeout=240))

    reached = {node for _ in range(3) for node in wave()}
    assert len(reached) == NODES
    if os.environ.get("CLINFUSE_RECORD"):
        started = time.perf_counter()
        for _ in range(TASKS // NODES):
            wave()
        record((time.perf_counter() - started) / TASKS)


def record(each: float) -> None:
    """Keep the figure beside the benchmarks' results."""
    lines = [
        f"# {NODES} simulated nodes on one machine of {os.cpu_count()} cores",
        "",
        "`CLINFUSE_RECORD=1 pytest tests/platform/test_many_nodes.py`",
        "",
        "| what | value |",
        "| --- | --- |",
        f"| scheduling of an empty task of 0.1 CPU, {TASKS} spread over {NODES} nodes | {each * 1e3:.1f} ms each |",
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_prep_runs_across_the_nodes(prepared: Namespace) -> None:
    assert prepared.done["cases"] == 8 and prepared.done["lost"] == 0
    assert prepared.hosts >= NODES // 2


def test_a_sweep_runs_across_the_nodes(prepared: Namespace, model: Path) -> None:
    words = ["--data", str(prepared.data), "--presets", "balanced", "--trials", "4", "--slots", "4"]
    words += ["--cases", "1", "--slices", "4", "--steps", "1", "--cpus-per-trial", "0.1"]
    done = run_verb("sweep", [str(model), *words, "--out", str(prepared.place / "sweep")])
    assert done["completed"] == 4
    assert len(pd.read_parquet(prepared.place / "sweep" / "trials.parquet")) == 4


def test_training_that_may_shrink_outlives_a_node(nodes: Any, tiny_store: Path, tmp_path: Path) -> None:
    for node in list(nodes.worker_nodes)[1:]:  # two places are left: one on the head, one on a node
        nodes.remove_node(node, allow_graceful=True)
    words = ["--recipe", "cpu-debug", "--set", "crop=[24,24]", "--set", "lesion_steps=6"]
    words += ["--set", "denoiser_steps=120", "--cpus-per-worker", "1", "--workers", "1:3"]
    lost = threading.Thread(target=lose_the_node, args=(nodes, tmp_path / "shrunk"), daemon=True)
    lost.start()
    run_verb("train", [str(tiny_store), "--run", "shrunk", "--storage", str(tmp_path), *words])
    lost.join(timeout=5)
    assert not nodes.worker_nodes, "training was over before the node was lost"
    run = find_run("shrunk", tmp_path)
    assert run.read_json("model/metadata.json")["facts"]["workers"] == 2
    steps = run.metrics().query("phase == 'denoiser'")["step"].tolist()
    assert steps == list(range(1, 121))


def lose_the_node(nodes: Any, run: Path) -> None:
    """Kill the last node when the second phase is under way."""
    for _ in range(6000):
        try:
            facts = json.loads((run / "progress-train.json").read_text())
        except (OSError, ValueError):
            facts = {}
        if facts.get("phase") == "denoiser" and facts["step"] > 4:
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
            return
        time.sleep(0.05)

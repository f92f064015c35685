"""A sweep that is killed, its driver or the whole cluster, goes on: nothing finished is lost, nothing repeated."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from analytic import Zdt1
from clinfuse_prep.session import knock, session
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import run_sweep
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.studies import open_storage

from clinfuse.presets import load_presets

pytestmark = pytest.mark.ray
SPACES = {name: space_around(load_presets()[name]) for name in ("balanced", "bone_tumor")}
PER_PRESET = 8
PLAN = Plan(spaces=SPACES, trials=PER_PRESET, slots=2, sampler="tpe")
Told = dict[tuple[str, int], tuple[dict[str, float], list[float]]]

DRIVER = """
import sys
from pathlib import Path
from clinfuse.presets import load_presets
from clinfuse_prep.session import session
from analytic import Zdt1
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import run_sweep
from clinfuse_sweeps.space import space_around

spaces = {name: space_around(load_presets()[name]) for name in ("balanced", "bone_tumor")}
with session(sys.argv[2] or None):
    run_sweep(Plan(spaces=spaces, trials=8, slots=2, sampler="tpe"), Zdt1(spaces, seconds=0.5), Path(sys.argv[1]))
"""


@contextmanager
def driver(folder: Path, address: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process of its own, killed at the end if it still lives."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # not a minute for a head that is dead
    words = [sys.executable, "-c", DRIVER, str(folder), address]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster(*more: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster's head as its own process, once it answers: (address, process)."""
    port, client = _free_port(), _free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray, "start", "--head", f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000", "--block"]
    words += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", *more]
    head = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_answer(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}", head
    finally:
        kill_tree(head)


def wait_for_answer(address: str) -> None:
    """Until the head listens."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return knock(address)
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and all that it started."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def wait_until(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Until that many trials are told as complete."""
    deadline = time.monotonic() + 180
    while finished_trials(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert finished_trials(folder) >= count


def finished_trials(folder: Path) -> int:
    """Trials told as complete, read from the journal's lines without opening the storage."""
    journal = folder / "journal.log"
    if not journal.exists():
        return 0
    count = 0
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        count += entry.get("state") == 1 and bool(entry.get("values"))
    return count


def told(folder: Path) -> Told:
    """What the journal holds as complete."""
    import optuna

    storage = open_storage(folder)
    return {
        (name, t.number): (t.params, t.values)
        for name in SPACES
        for t in optuna.load_study(study_name=name, storage=storage).trials
        if t.state.name == "COMPLETE"
    }


def check_goes_on(folder: Path) -> None:
    """Resume, and compare with what had been told before."""
    before = told(folder)
    assert len(before) >= 3
    result = run_sweep(PLAN, Zdt1(SPACES), folder, resume=True)
    done = result.table[result.table["state"] == "complete"]
    every = result.table[["trial_id", "state", "error"]].to_string()
    assert done.groupby("preset").size().to_dict() == dict.fromkeys(SPACES, PER_PRESET), every
    assert not done.duplicated(["preset", *PLAN.params]).any()
    for (name, number), (params, values) in before.items():
        row = done[(done["preset"] == name) & (done["number"] == number)].iloc[0]
        assert {k: row[k] for k in params} == pytest.approx(params)
        assert [row["brain_ssim"], row["bone_ssim"]] == pytest.approx(values)
    interrupted = result.table[result.table["state"] == "interrupted"]
    # what was running was tried again with the same values (none yet if the driver died while asking)
    for lost in interrupted.dropna(subset=["alpha"]).to_dict("records"):
        twin = done[(done["preset"] == lost["preset"]) & (done["alpha"] == lost["alpha"])]
        assert len(twin) == 1


def test_a_killed_driver_loses_no_finished_trial_and_repeats_none(tmp_path: Path) -> None:
    with driver(tmp_path / "s") as process:
        wait_until(process, tmp_path / "s", 3)
        process.send_signal(signal.SIGKILL)
    with session():
        check_goes_on(tmp_path / "s")


def test_a_killed_head_loses_no_finished_trial_and_repeats_none(tmp_path: Path) -> None:
    with cluster() as (address, head), driver(tmp_path / "s", address) as process:
        wait_until(process, tmp_path / "s", 3)
        kill_tree(head)
        process.wait(timeout=240)
        assert process.returncode != 0
    with session():
        check_goes_on(tmp_path / "s")


def test_four_trials_share_one_gpu_of_a_running_cluster(tmp_path: Path) -> None:
    """The GPU is a declared one; each worker that loads the problem leaves a file, and stays for the whole sweep."""
    from clinfuse_sweeps.sweep_verb import slots_of

    (tmp_path / "loaded").mkdir()
    problem = Zdt1(SPACES, seconds=1.0, register=str(tmp_path / "loaded"))
    with cluster("--num-gpus=1") as (address, _), session(address):
        plan = Plan(spaces=SPACES, trials=6, slots=slots_of(0.5, 0.25), sampler="random", cpus=0.5, gpus=0.25)
        result = run_sweep(plan, problem, tmp_path / "s")
    assert plan.slots == 4 and len(list((tmp_path / "loaded").iterdir())) == 4
    assert (result.table["state"] == "complete").all()

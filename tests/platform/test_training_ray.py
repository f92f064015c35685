"""Training on real Ray: two workers, one killed in the middle, the same weights as undisturbed."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from clinfuse_platform.curves import Curves
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import train_plan
from clinfuse_platform.runs import Run, find_run
from clinfuse_platform.verb_table import run_verb
from safetensors.numpy import load_file
from upath import UPath

from clinfuse.pipeline import FusionPipeline
from clinfuse.training import fit

pytestmark = pytest.mark.ray
SMALL = ["--recipe", "cpu-debug"]
SMALL += ["--set", "crop=[24,24]", "--set", "lesion_steps=6", "--set", "denoiser_steps=40"]


@pytest.fixture(scope="module", autouse=True)
def _interrupts_are_heard() -> None:
    """Also where the tests were started in the background of a shell, which has them ignore the key."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="module")
def trained(ray_session: None, place: Path, tiny_store: Path) -> Namespace:
    """An undisturbed run with two workers."""
    words = [str(tiny_store), "--run", "calm", "--storage", str(place), "--workers", "2", *SMALL]
    result = run_verb("train", words)
    return Namespace(words=words, result=result, run=find_run("calm", place), data=tiny_store)


def weights(run: Run, part: str = "denoiser") -> dict[str, np.ndarray[Any, Any]]:
    return load_file(Path(str(run.path / "model" / part / "model.safetensors")))


def alive(name: str) -> list[psutil.Process]:
    """Processes below this one with that word in their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


class KillOne(threading.Thread):
    """Kills a training worker with SIGKILL as soon as the run reports from the denoiser's phase.

    It looks for the workers while the lesion head trains, so that nothing is left to do but to kill.
    """

    def __init__(self, progress: Path) -> None:
        super().__init__(daemon=True)
        self.progress, self.workers, self.killed = progress, list[psutil.Process](), 0

    def run(self) -> None:
        while not self.killed:
            try:
                phase = json.loads(self.progress.read_text())["phase"]
            except (OSError, ValueError):
                time.sleep(0.01)
                continue
            self.workers = self.workers or alive("RayTrainWorker")
            if phase == "denoiser":
                self.workers[-1].kill()
                self.killed = self.workers[-1].pid
            time.sleep(0.01)


def test_a_finished_run_has_model_history_and_state(trained: Namespace) -> None:
    run, result = trained.run, trained.result
    pipeline = FusionPipeline.from_pretrained(result["result"])
    assert pipeline.kind == "teacher" and pipeline.lesion_head is not None
    assert pipeline.metadata["workers"] == 2 and len(pipeline.metadata["data_hash"]) == 16
    rows = run.metrics()
    assert rows.groupby("phase")["step"].max().to_dict() == {"denoiser": 40, "lesion_head": 6}
    assert np.isfinite(rows.loc[rows["phase"] == "denoiser", "loss"]).all()
    assert run.state("train") == "finished"
    assert run.read_json("config.json")["config"]["crop"] == [24, 24]


def test_a_finished_run_leaves_no_actor_and_no_interrupt_handler(trained: Namespace) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not alive("AutoscalingCoordinator"), "nobody asks for nodes where there can be no others"
    assert not alive("TrainController"), "the controller belongs into this process"
    assert_workers_end()
    handlers = logging.getLogger("ray.train").handlers
    assert not [one for one in handlers if type(one).__module__.startswith("ray")], (
        "these lock, see log_to_session"
    )
    (file,) = (Path(one.baseFilename) for one in handlers if type(one) is logging.FileHandler)
    assert "training worker group" in file.read_text()


def assert_workers_end() -> None:
    for _ in range(120):
        if not alive("RayTrainWorker"):
            return
        time.sleep(0.25)
    raise AssertionError("a worker still lives")


@pytest.mark.parametrize("moment", ["workers are starting", "training"])
def test_an_interrupt_ends_the_workers_and_says_so(
    ray_session: None, moment: str, place: Path, tiny_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    name = moment.replace(" ", "-")
    words = [str(tiny_store), "--run", name, "--storage", str(place), "--workers", "1", *SMALL]

    def come() -> bool:
        if moment == "training":
            return (place / name / "progress-train.json").exists()
        return bool(alive("RayTrainWorker"))

    def press() -> None:
        while not come():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_verb("train", [*words, "--set", "lesion_steps=100000"])
    known = find_run(name, place).read_json("state.json")["train"]
    assert known["state"] == "failed" and known["error"].startswith("KeyboardInterrupt")
    assert_workers_end()
    for _ in range(40):
        if ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.25)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], "places are still taken"
    told = capfd.readouterr()
    assert "Requesting resources" not in told.out + told.err, "Ray Train's own log reached the console"
    assert "never retrieved" not in told.err and "destroyed" not in told.err, "asyncio complains of the task"


def test_a_finished_run_does_not_train_again(trained: Namespace) -> None:
    files = [path for path in Path(str(trained.run.path)).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert run_verb("train", trained.words)["model_hash"] == trained.result["model_hash"]
    after = [path for path in Path(str(trained.run.path)).rglob("*") if path.is_file()]
    assert {path: path.stat().st_mtime_ns for path in after} == before


def test_a_killed_worker_costs_nothing_but_time(trained: Namespace, place: Path) -> None:
    words = [*trained.words[:1], "--run", "killed", *trained.words[3:]]
    killer = KillOne(place / "killed" / "progress-train.json")
    killer.start()
    run_verb("train", words)
    assert killer.killed, "training was over before a worker could be killed"
    run = find_run("killed", place)
    for part in ("lesion_head", "denoiser"):
        calm, disturbed = weights(trained.run, part), weights(run, part)
        assert all(np.array_equal(calm[k], disturbed[k]) for k in calm)
    steps = run.metrics().query("phase == 'denoiser'")["step"].tolist()
    assert steps == sorted(set(steps)) and steps[-1] == 40
    assert events(Path(str(run.path)), "denoiser")["loss"] == list(range(1, 41)), (
        "a curve has gaps or repeats"
    )
    left = {path.name for path in Path(str(run.path)).glob("checkpoints-*/checkpoint_2*")}
    assert len(left) <= 2, "checkpoints that nobody registered stay behind"


def events(run: Path, phase: str) -> dict[str, list[int]]:
    """Steps of every curve that TensorBoard shows of a phase."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard" / "train" / phase)).Reload()
    return {name: [point.step for point in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def test_a_phase_that_goes_on_or_begins_anew_replaces_what_it_repeats(tmp_path: Path) -> None:
    for since, until in ((0, 5), (0, 9), (7, 12)):
        curves = Curves(UPath(tmp_path), "train", "denoiser", since)
        for step in range(since + 1, until + 1):
            curves.add({"phase": "denoiser", "step": step, "loss": 0.5})
        curves.close()
        time.sleep(1.1)  # the files' names tell whole seconds
    assert events(tmp_path, "denoiser")["loss"] == list(range(1, 13))


def bare_weights(run: Run, config: dict[str, Any], data: str) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """The same training in this process without Ray."""
    plan = train_plan(
        Work(job="train", settings={"config": config, "data": data, "data_hash": "", "run": ""})
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the worker has: sums of more threads differ in the last bit
    done: dict[str, Any] = {}
    for phase in plan.phases:
        module = phase.build(done)
        fit(
            module,
            phase.loss(done),
            phase.batches(done),
            steps=phase.steps,
            learning_rate=phase.learning_rate,
            effort=phase.effort,
            seed=phase.seed * 1000,
        )
        done[phase.name] = module
    torch.set_num_threads(threads)
    return {name: {k: v.numpy() for k, v in m.state_dict().items()} for name, m in done.items()}


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Wait until the denoiser trains and the lesion head's end is kept; the rows that the checkpoint tells."""
    for _ in range(6000):
        assert process.poll() is None, "the command ended before it could be killed"
        kept = []
        for snapshot in run.glob("checkpoints-*/checkpoint_manager_snapshot.json"):
            names = [
                path for path in snapshot.parent.glob("checkpoint_2*") if path.name in snapshot.read_text()
            ]
            kept = [
                json.loads((p / "position.json").read_text()) for p in names if (p / "position.json").exists()
            ]
        finished = [position for position in kept if "lesion_head" in position["done"]]
        if finished:
            return finished[-1]["history"]
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def test_a_killed_command_goes_on_and_ray_train_equals_a_bare_loop(
    ray_session: None, place: Path, tiny_store: Path
) -> None:
    words = [
        str(tiny_store),
        "--run",
        "dead",
        "--storage",
        str(place),
        "--workers",
        "1",
        "--cpus-per-worker",
        "1",
    ]
    words += [*SMALL, "--set", "denoiser_steps=60"]
    code = "import sys; from clinfuse_platform.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, "train", *words], text=True)
    told = wait_for_checkpoint(place / "dead", process)
    process.kill()
    process.wait()
    assert find_run("dead", place).state("train") == "running"
    (snapshot,) = (place / "dead").glob("checkpoints-*/checkpoint_manager_snapshot.json")
    snapshot.write_text(snapshot.read_text()[:100])  # the kill came while the list was being written
    run_verb("train", words)
    run = find_run("dead", place)
    rows = run.metrics()
    before = [row["elapsed"] for row in told if row["phase"] == "lesion_head"]
    assert rows.loc[rows["phase"] == "lesion_head", "elapsed"].tolist() == before, "it began anew"
    config = run.read_json("config.json")["config"]
    for part, expected in bare_weights(run, config, str(tiny_store)).items():
        found = weights(run, part)
        assert all(np.array_equal(found[k], expected[k]) for k in expected)

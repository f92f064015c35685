"""Training on real Ray: two workers, one killed in the middle, the same weights as undisturbed; and what follows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from clinfuse_platform.curves import Curves
from clinfuse_platform.launch import TrainingError, Workers, check_resources
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import train_plan
from clinfuse_platform.runs import Run, find_run
from clinfuse_platform.verb_table import run_verb
from safetensors.numpy import load_file
from upath import UPath

from clinfuse.errors import ConfigError
from clinfuse.model_folder import weights_hash
from clinfuse.pipeline import FusionPipeline
from clinfuse.training import fit

pytestmark = pytest.mark.ray
SMALL = [
    "--recipe",
    "cpu-debug",
    "--set",
    "crop=[24,24]",
    "--set",
    "lesion_steps=6",
    "--set",
    "denoiser_steps=40",
]


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
    """Kills a training worker with SIGKILL as soon as the run reports from the named phase."""

    def __init__(self, progress: Path, phase: str) -> None:
        super().__init__(daemon=True)
        self.progress, self.phase, self.killed = progress, phase, 0

    def run(self) -> None:
        for _ in range(6000):
            try:
                facts = json.loads(self.progress.read_text())
            except (OSError, ValueError):
                facts = {}
            if facts.get("phase") == self.phase and (workers := alive("RayTrainWorker")):
                os.kill(workers[-1].pid, signal.SIGKILL)
                self.killed = workers[-1].pid
                return
            time.sleep(0.05)


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
    assert "ray" not in getattr(signal.getsignal(signal.SIGINT), "__module__", "")
    for _ in range(120):
        if not alive("TrainController"):
            return
        time.sleep(0.25)
    raise AssertionError("the training's controller still lives")


def test_a_finished_run_does_not_train_again(trained: Namespace) -> None:
    before = (trained.run.path / "model" / "metadata.json").stat().st_mtime_ns
    started = time.monotonic()
    assert run_verb("train", trained.words)["model_hash"] == trained.result["model_hash"]
    assert time.monotonic() - started < 5
    assert (trained.run.path / "model" / "metadata.json").stat().st_mtime_ns == before


def test_a_killed_worker_costs_nothing_but_time(trained: Namespace, place: Path) -> None:
    words = [*trained.words[:1], "--run", "killed", *trained.words[3:]]
    killer = KillOne(place / "killed" / "progress-train.json", "denoiser")
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


def test_student_and_ensemble_follow_from_the_run(trained: Namespace, place: Path) -> None:
    common = [
        str(trained.run.path),
        "--workers",
        "1",
        "--set",
        "distill_iterations=4",
        "--set",
        "member_steps=3",
    ]
    student = run_verb("distill", [*common, "--steps", "2"])
    assert FusionPipeline.from_pretrained(student["result"]).student_steps == 2
    ensemble = run_verb("ensemble", [*common, "--members", "2"])
    pipeline = FusionPipeline.from_pretrained(ensemble["result"])
    assert len(pipeline.members) == 2 and pipeline.kind == "student"
    made_from = json.loads((student["result"] / "metadata.json").read_text())
    assert pipeline.metadata["base"] == weights_hash(made_from)
    first, second = (dict(member.named_parameters()) for member in pipeline.members)
    assert any(float((first[k] - second[k]).abs().max()) > 1e-3 for k in first)
    calibrated = run_verb("calibrate", [ensemble["result"].as_posix(), "--data", str(trained.data)])
    assert calibrated["cases"] == 2 and calibrated["error_head_cases"] >= 1
    pipeline = FusionPipeline.from_pretrained(ensemble["result"])
    assert pipeline.calibration is not None and pipeline.error_head is not None


def test_a_loss_that_is_not_finite_stops_and_names_the_cases(trained: Namespace, place: Path) -> None:
    words = [
        *trained.words[:1],
        "--run",
        "wild",
        "--storage",
        str(place),
        *SMALL,
        "--set",
        "learning_rate=1e30",
    ]
    with pytest.raises(TrainingError, match=r"not finite .*cases in the batch: [abc]{6}"):
        run_verb("train", words)
    run = find_run("wild", place)
    assert run.state("train") == "failed"
    kept = list(Path(str(run.path)).glob("checkpoints-*/checkpoint_2*/**/*.safetensors"))
    assert kept, "no good checkpoint was kept"
    assert all(np.isfinite(value).all() for file in kept for value in load_file(file).values())


def test_checkpoints_are_judged_beside_the_training_and_the_best_stay(
    trained: Namespace, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [*trained.words[:1], "--run", "judged", "--storage", str(place), *SMALL, "--mlflow"]
    words += ["--set", "validations=2", "--set", "effort.average=0.9", "--set", "effort.accumulate=2"]
    run_verb("train", words)
    run = find_run("judged", place)
    rows = run.metrics()
    judged = rows[rows["phase"] == "denoiser"].dropna(subset="val_score")
    assert len(judged) == 2 and judged["step"].iloc[-1] == 40
    assert judged[["val_brain_ssim", "val_bone_ssim", "val_lesion_dice"]].notna().all(axis=None)
    best = run.read_json("state.json")["train"]["best"]
    assert best[0]["val_score"] == pytest.approx(judged["val_score"].max()) and best[0]["val_score"] > 1
    folders = {
        f"{path.parent.name}/{path.name}" for path in Path(str(run.path)).glob("checkpoints-*/checkpoint_2*")
    }
    assert {one["checkpoint"] for one in best} == folders
    assert_mlflow_has(place, rows)


def assert_mlflow_has(place: Path, rows: pd.DataFrame) -> None:
    """The curves that MLflow holds of the run are those of the run's own table."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (told,) = client.search_runs([client.get_experiment_by_name("clinfuse").experiment_id])
    history = client.get_metric_history(told.info.run_id, "denoiser/loss")
    expected = rows.loc[rows["phase"] == "denoiser", "loss"].tolist()
    assert [point.value for point in history] == pytest.approx(expected)
    assert told.data.params["config.effort.accumulate"] == "2" and told.data.tags["model"]


def test_more_workers_than_the_cluster_can_hold_are_refused_at_once(ray_session: None) -> None:
    with pytest.raises(ConfigError, match=r"64 CPU.*4 CPU"):
        check_resources(Workers(count=64, cpus=1))
    with pytest.raises(ConfigError, match="1 GPU"):
        check_resources(Workers(count=1, gpus=1, cpus=1))

"""An ensemble's members: jobs of their own, at the same time where there is room, each kept whatever others do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clinfuse_platform.launch import TrainingError, Workers
from clinfuse_platform.members import room, shared_out, together
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import members_plan
from clinfuse_platform.runs import Run
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.session import gpus_present

from clinfuse.method.calibration import fit_calibration
from clinfuse.method.error_head import ErrorHead
from clinfuse.model_files import weights_hash
from clinfuse.pipeline import FusionPipeline
from clinfuse.training import fit

ONE = ["--cpus-per-worker", "1"]  # one thread each: several fit on any machine of two cores
STEPS = 24
COMMAND = "import sys; from clinfuse_platform.cli import main; sys.exit(main(sys.argv[1:]))"
severally = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs room for two members: two cores")


def test_as_many_run_at_once_as_asked_and_a_failure_stops_no_other() -> None:
    met, done, now, most = threading.Barrier(2), list[int](), list[int](), list[int]()

    def do(number: int) -> None:
        now.append(number)
        most.append(len(now))
        met.wait(timeout=30)  # passed only by two at the same time
        now.remove(number)
        if number == 2:
            raise ValueError("the second")
        done.append(number)

    failed = together(do, [1, 2, 3, 4], 2)
    assert sorted(done) == [1, 3, 4] and max(most) == 2
    assert {number: str(error) for number, error in failed.items()} == {2: "the second"}


@pytest.mark.ray
def test_only_cores_are_room(ray_session: None) -> None:
    cores = os.cpu_count() or 1
    assert room(Workers(count=1, cpus=1)) == cores
    assert room(Workers(count=2, cpus=cores)) == 1
    places = max(1, gpus_present())
    assert room(Workers(count=1, gpus=1, cpus=1)) == min(cores, places)
    assert shared_out(Workers(count=1, gpus=1), 3).cpus_each == max(1, cores // min(3, places))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made_run: Callable[..., Run]) -> Run:
    """A run that has a model, with weights as they begin."""
    return made_run(tmp_path_factory.mktemp("members") / "whole", member_steps=STEPS)


def bare(run: Run, number: int) -> dict[str, torch.Tensor]:
    """A member trained in this process without Ray."""
    settings = run.read_json("config.json") | {"teacher": str(run.path / "model"), "members": [number]}
    (phase,) = members_plan(Work(job="ensemble", settings={**settings, "base": settings["teacher"]})).phases
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module = phase.build({})
    how = {"steps": phase.steps, "learning_rate": phase.learning_rate, "effort": phase.effort}
    fit(module, phase.loss({}), phase.batches({}), seed=phase.seed * 1000, **how)
    torch.set_num_threads(threads)
    return {name: value.clone() for name, value in module.state_dict().items()}


def kept(run: Run, number: int) -> bool:
    """Whether a checkpoint of the member's own is there."""
    return any(Path(str(run.path)).glob(f"checkpoints-member_{number}-*/checkpoint_manager_snapshot.json"))


@severally
@pytest.mark.ray
def test_members_train_at_once_and_go_on_after_a_kill(ray_session: None, run: Run) -> None:
    words = ["ensemble", str(run.path), *ONE, "--members"]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words, "3"])
    while not (kept(run, 1) and kept(run, 2)):
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert run.state("ensemble") == "running"
    result = run_verb(words[0], [*words[1:], "3"])
    whole = FusionPipeline.from_pretrained(result["result"])
    base = FusionPipeline.from_pretrained(Path(str(run.path / "model")))
    told = run.read_json("model/metadata.json")
    assert whole.metadata["base"] == weights_hash(told) and whole.metadata["ensemble_steps"] == STEPS
    assert len(whole.members) == 3
    for number, member in enumerate(whole.members):
        expected = bare(run, number) if number else base.members[0].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in member.state_dict().items())
    steps = {job: part["step"].tolist() for job, part in run.metrics().groupby("job")}
    assert steps == {f"member_{number}": list(range(1, STEPS + 1)) for number in (1, 2)}
    assert set(result["last"]) == set(steps)
    known = run.read_json("state.json")
    fewer = run_verb(words[0], [*words[1:], "2"])  # put together from those there are
    assert len(FusionPipeline.from_pretrained(fewer["result"]).members) == 2
    assert all(run.read_json("state.json")[job] == known[job] for job in steps), "trained again"


def calibrate(folder: Path, error_head: Callable[..., ErrorHead]) -> None:
    """Give the model an error head and a calibration."""
    whole = FusionPipeline.from_pretrained(folder)
    whole.error_head = error_head(0.1)
    std, error = np.random.default_rng(0).random((2, 200)) / 10
    whole.calibration = fit_calibration([std], [error], [{}])
    whole.save_pretrained(folder)


@pytest.mark.ray
def test_calibrating_the_base_trains_no_member_again_and_is_not_inherited(
    ray_session: None,
    made_run: Callable[..., Run],
    tmp_path: Path,
    error_head: Callable[..., ErrorHead],
) -> None:
    run = made_run(tmp_path / "base", member_steps=1)
    words = [str(run.path), *ONE, "--members"]
    before = FusionPipeline.from_pretrained(run_verb("ensemble", [*words, "2"])["result"])
    known, base = run.read_json("state.json"), Path(str(run.path / "model"))
    calibrate(base, error_head)
    run_verb("ensemble", [*words, "2"])
    assert run.read_json("state.json") == known, "trained again"
    after = FusionPipeline.from_pretrained(run_verb("ensemble", [*words, "3"])["result"])
    assert run.read_json("state.json")["member_1"] == known["member_1"], "trained again"
    assert FusionPipeline.from_pretrained(base).error_head is not None
    for whole in (after, FusionPipeline.from_pretrained(Path(str(run.path / "members" / "2")))):
        assert whole.error_head is None and whole.calibration is None
    assert len(after.members) == 3 and after.metadata["base"] == before.metadata["base"]


@severally
@pytest.mark.ray
def test_a_member_that_failed_is_named(
    ray_session: None, made_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = made_run(tmp_path / "wild", member_steps=20)
    words = [str(run.path), "--members", "2", *ONE, "--set", "learning_rate=1e30"]
    with pytest.raises(TrainingError, match=r"member_1: .*not finite.*; kept: none"):
        run_verb("ensemble", words)
    assert {run.state(job) for job in ("member_1", "ensemble")} == {"failed"}
    assert not run.has_model("ensemble")

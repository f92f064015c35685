"""What follows a training on real Ray: student, ensemble, calibration; checkpoints that are judged; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clinfuse_platform.launch import TrainingError, Workers, check_resources
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import members_plan
from clinfuse_platform.runs import Run, find_run
from clinfuse_platform.trainer import NEVER_NEEDED, LeanTrainer
from clinfuse_platform.verb_table import run_verb
from ray.train.torch import TorchTrainer
from safetensors.numpy import load_file

from clinfuse.errors import ConfigError
from clinfuse.model_files import weights_hash
from clinfuse.pipeline import FusionPipeline
from clinfuse.training import fit

pytestmark = pytest.mark.ray
SMALL = ["--recipe", "cpu-debug"]
SMALL += ["--set", "crop=[24,24]", "--set", "lesion_steps=6", "--set", "denoiser_steps=40"]


def test_student_and_ensemble_follow_from_the_run(
    ray_session: None, made_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = made_run(
        tmp_path / "first", distill_iterations=4, distill_batches=2, teacher_steps=2, member_steps=3
    )
    common = [str(run.path), "--workers", "1", "--cpus-per-worker", "1"]
    student = run_verb("distill", [*common, "--steps", "2"])
    assert FusionPipeline.from_pretrained(student["result"]).student_steps == 2
    ensemble = run_verb("ensemble", [*common, "--members", "2"])
    pipeline = FusionPipeline.from_pretrained(ensemble["result"])
    assert len(pipeline.members) == 2 and (pipeline.kind, pipeline.student_steps) == ("student", 2)
    assert pipeline.metadata["base"] == weights_hash(run.read_json("student/metadata.json"))
    expected = bare_member(run, student_steps=2)
    assert all(torch.equal(value, expected[name]) for name, value in pipeline.members[1].state_dict().items())
    data = run.read_json("config.json")["data"]
    calibrated = run_verb("calibrate", [ensemble["result"].as_posix(), "--data", data])
    assert calibrated["cases"] == 2 and calibrated["error_head_cases"] >= 1
    pipeline = FusionPipeline.from_pretrained(ensemble["result"])
    assert pipeline.calibration is not None and pipeline.error_head is not None


def bare_member(run: Run, **changes: int) -> dict[str, torch.Tensor]:
    """The second member of a student's ensemble trained in this process, without Ray."""
    known = run.read_json("config.json")
    settings = known | {"config": known["config"] | changes, "run": str(run.path), "members": [1]}
    settings |= {"teacher": str(run.path / "model"), "base": str(run.path / "student")}
    settings["teacher_key"] = weights_hash(run.read_json("model/metadata.json"))
    (phase,) = members_plan(Work(job="ensemble", settings=settings)).phases
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the worker has: sums of more threads differ in the last bit
    module = phase.build({})
    how = {"steps": phase.steps, "learning_rate": phase.learning_rate, "effort": phase.effort}
    fit(module, phase.loss({}), phase.batches({}), seed=phase.seed * 1000, **how)
    torch.set_num_threads(threads)
    return module.state_dict()


def test_a_loss_that_is_not_finite_stops_and_names_the_cases(
    ray_session: None, tiny_store: Path, tmp_path: Path
) -> None:
    words = [str(tiny_store), "--run", "wild", "--storage", str(tmp_path), *SMALL]
    words += ["--set", "learning_rate=1e30", "--workers", "2"]
    with pytest.raises(TrainingError, match=r"not finite .*cases in the batch: [abc]{6}"):
        run_verb("train", words)
    run = find_run("wild", tmp_path)
    assert run.state("train") == "failed"
    kept = list(Path(str(run.path)).glob("checkpoints-*/checkpoint_2*/**/*.safetensors"))
    assert kept, "no good checkpoint was kept"
    assert all(np.isfinite(value).all() for file in kept for value in load_file(file).values())


def test_checkpoints_are_judged_beside_the_training_and_the_best_stay(
    ray_session: None, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [str(tiny_store), "--run", "judged", "--storage", str(tmp_path), *SMALL, "--mlflow"]
    words += ["--set", "validations=2", "--set", "effort.average=0.9", "--set", "effort.accumulate=2"]
    run_verb("train", words)
    run = find_run("judged", tmp_path)
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
    assert_mlflow_has(tmp_path, rows)


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


def test_ray_train_starts_no_process_that_a_local_run_has_no_use_for(ray_session: None) -> None:
    def names(kind: Any) -> set[str]:
        return {type(one).__name__ for one in kind(print)._create_default_callbacks()}

    assert names(TorchTrainer) - names(LeanTrainer) == NEVER_NEEDED, (
        "named otherwise by this Ray, or still started"
    )
    assert names(LeanTrainer) <= names(TorchTrainer)

"""Optional logs of trials: TensorBoard's files read back, MLflow's runs where it is installed, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from clinfuse_sweeps.trial_logs import TrialLog, open_logs, tell_all, told

from clinfuse.errors import ConfigError

TRIAL = {
    "preset": "balanced",
    "number": 3,
    "params": {"alpha": 1.5},
    "state": "complete",
    "metrics": {"brain_ssim": 0.9, "lesion_dice": math.nan},
}


def test_tensorboard_files_hold_what_was_told(tmp_path: Path) -> None:
    with open_logs(["tensorboard", "tensorboard"], tmp_path) as (log,):
        log(TRIAL)
        log({"preset": "balanced", "number": 4, "params": {}, "state": "failed"})
    (file,) = (tmp_path / "tensorboard" / "balanced").iterdir()
    content = file.read_bytes()
    assert b"metrics/brain_ssim" in content and b"params/alpha" in content
    assert b"lesion_dice" not in content  # absent, not zero
    assert told(TRIAL) == {"brain_ssim": 0.9}


def test_mlflow_holds_a_run_per_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_logs(["mlflow"], tmp_path) as (log,):
        log(TRIAL)
    experiment = mlflow.get_experiment_by_name(f"clinfuse/{tmp_path.name}")
    (run,) = mlflow.MlflowClient().search_runs([experiment.experiment_id])
    assert run.data.metrics == {"brain_ssim": 0.9}
    assert run.data.params == {"alpha": "1.5"}
    assert run.data.tags["state"] == "complete"


def test_unknown_and_absent_logs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tensorboard, mlflow"):
        open_logs(["wandb"], tmp_path).__enter__()
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        open_logs(["mlflow"], tmp_path).__enter__()


def test_a_log_that_fails_does_not_end_the_sweep() -> None:
    def gone(trial: object) -> None:
        raise ConnectionError("the server is gone")

    seen: list[object] = []
    logs: list[TrialLog] = [gone, seen.append]
    for _ in range(2):
        tell_all(logs, TRIAL)
    assert logs == [seen.append] and len(seen) == 2

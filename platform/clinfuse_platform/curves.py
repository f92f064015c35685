"""Curves of a run for people: TensorBoard's event files while it trains, MLflow's runs when it is over."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse.errors import ConfigError

if TYPE_CHECKING:
    from clinfuse_platform.runs import Run

FOLDER = "tensorboard"
NOT_CURVES = ("phase", "step", "job", "elapsed")
TENSORBOARD_WRITES_TO = ("", "file", "s3", "gs")


class Curves:
    """TensorBoard's file of one phase: `RUN/tensorboard/<job>/<phase>`; a phase that goes on, or begins
    anew, replaces what it repeats.

    `tensorboard --logdir RUNS` shows all runs side by side.
    """

    def __init__(self, run: UPath, job: str, phase: str, since: int) -> None:
        folder = run / FOLDER / job / phase
        self._writer: Any = None
        if folder.protocol in TENSORBOARD_WRITES_TO:
            make = import_module("tensorboardX").SummaryWriter
            self._writer = make(str(folder), purge_step=since + 1, flush_secs=10)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of the history."""
        for name, value in scalars(row).items() if self._writer is not None else ():
            self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write all out."""
        if self._writer is not None:
            self._writer.close()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a history row can be drawn: finite numbers."""
    numbers = {name: value for name, value in row.items() if name not in NOT_CURVES and value is not None}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def check_mlflow() -> None:
    """Refuse before the training what would fail after it.

    Raises:
        ConfigError: MLflow is not installed.
    """
    try:
        import_module("mlflow")
    except ImportError as error:
        raise ConfigError(
            "MLflow is not installed",
            found="no such package",
            todo="pip install mlflow, or leave --mlflow out",
        ) from error


def tell_mlflow(run: Run, job: str, rows: Sequence[Mapping[str, Any]], tags: Mapping[str, Any]) -> None:
    """A finished job as a run of MLflow's experiment `clinfuse`: settings, tags and every curve.

    It goes to the server that MLFLOW_TRACKING_URI names, else into `mlflow.db` beside the run's folder.
    """
    from clinfuse_platform.runs import flat

    mlflow: Any = import_module("mlflow")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    mlflow.set_experiment("clinfuse")
    with mlflow.start_run(run_name=f"{run.name} {job}"):
        mlflow.set_tags({name: str(value) for name, value in tags.items()})
        mlflow.log_params({name: str(v)[:250] for name, v in flat(run.read_json("config.json")).items()})
        for row in rows:
            values = {f"{row['phase']}/{name}": value for name, value in scalars(row).items()}
            mlflow.log_metrics(values, step=int(row["step"]))

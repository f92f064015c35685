"""Finished trials also told to TensorBoard or MLflow, if the person asks for it; the journal stays the memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from clinfuse.console import say
from clinfuse.errors import ConfigError

TrialLog = Callable[[Mapping[str, Any]], None]
OpenLog = tuple[TrialLog, Callable[[], None]]  # what takes a trial, and what ends the log


@contextmanager
def open_logs(names: Sequence[str], folder: Path) -> Iterator[list[TrialLog]]:
    """The logs asked for, closed (and so written out) at the end.

    Each is called with every finished trial's preset, number, params, state and metrics.

    Args:
        names: of LOGS, each at most once.
        folder: sweep folder; TensorBoard's files go to `tensorboard/` in it, MLflow's to the tracking server that
            MLFLOW_TRACKING_URI names, else to `mlflow.db` in it.

    Raises:
        ConfigError: an unknown name, or its package is not installed (the command that installs it is given).
    """
    found, ends = list[TrialLog](), list[Callable[[], None]]()
    for name in dict.fromkeys(names):
        if name not in LOGS:
            raise ConfigError("no such log", expected=f"one of {', '.join(LOGS)}", found=name)
        package, opened = LOGS[name]
        try:
            log, end = opened(folder)
        except ImportError as error:
            raise ConfigError(
                f"{name} is not installed", found="no such package", todo=f"pip install {package}"
            ) from error
        found.append(log)
        ends.append(end)
    try:
        yield found
    finally:
        for end in ends:
            end()


def tell_all(logs: list[TrialLog], trial: Mapping[str, Any]) -> None:
    """Tell the trial to every log; one that fails (a server that is gone) is left out from then on, and said so."""
    for log in tuple(logs):
        try:
            log(trial)
        except Exception as error:
            logs.remove(log)
            say(f"  a trial log failed ({type(error).__name__}); the sweep goes on without it")


def told(trial: Mapping[str, Any]) -> dict[str, float]:
    """The trial's metrics that have a value."""
    return {name: float(v) for name, v in trial.get("metrics", {}).items() if math.isfinite(v)}


def tensorboard_log(folder: Path) -> OpenLog:
    """Each preset is a TensorBoard run; metrics and searched values are scalars over the trial's number."""
    writer = import_module("tensorboardX").SummaryWriter
    writers: dict[str, Any] = {}

    def log(trial: Mapping[str, Any]) -> None:
        name, number = str(trial["preset"]), int(trial["number"])
        if name not in writers:
            writers[name] = writer(str(folder / "tensorboard" / name))
        for group, values in (("metrics", told(trial)), ("params", dict(trial["params"]))):
            for key, value in values.items():
                writers[name].add_scalar(f"{group}/{key}", float(value), number)
        writers[name].flush()

    def end() -> None:
        for each in writers.values():
            each.close()

    return log, end


def mlflow_log(folder: Path) -> OpenLog:
    """Each trial is an MLflow run of the experiment `clinfuse/<sweep folder's name>`."""
    mlflow: Any = import_module("mlflow")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment(f"clinfuse/{folder.name}")

    def log(trial: Mapping[str, Any]) -> None:
        with mlflow.start_run(run_name=f"{trial['preset']}-{int(trial['number']):04d}"):
            mlflow.set_tags({"preset": trial["preset"], "state": trial.get("state", "failed")})
            mlflow.log_params({name: float(value) for name, value in trial["params"].items()})
            mlflow.log_metrics(told(trial))

    return log, lambda: None


# name: (what to install, how it is opened)
LOGS: dict[str, tuple[str, Callable[[Path], OpenLog]]] = {
    "tensorboard": ("tensorboardX", tensorboard_log),
    "mlflow": ("mlflow", mlflow_log),
}

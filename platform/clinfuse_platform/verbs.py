"""The training verbs: train, distill, ensemble and calibrate."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from clinfuse import RESEARCH_USE
from clinfuse.console import say
from clinfuse.errors import ConfigError, InputError
from clinfuse.verbs import Verb, parse_settings

if TYPE_CHECKING:
    from upath import UPath

    from clinfuse_platform.launch import Workers
    from clinfuse_platform.runs import Run

RECIPES = ("cpu-debug", "cpu-small", "gpu-2d", "gpu-3d")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse train`."""
    parser.add_argument("data", metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument(
        "--recipe", choices=RECIPES, default="cpu-small", help="size of the job (%(default)s)"
    )
    parser.add_argument("--run", required=True, metavar="NAME", help="name of the run; the same name goes on")
    _add_common(parser)


def check_data(arguments: argparse.Namespace) -> None:
    """Refuse a path without dataset."""
    from clinfuse_prep.store import CaseStore

    CaseStore(arguments.data).check()


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train lesion head and denoiser; the model folder of the guided teacher."""
    from clinfuse.training import recipe
    from clinfuse_platform.launch import launch
    from clinfuse_platform.provenance import data_hash, has_lesions
    from clinfuse_platform.runs import create_run
    from clinfuse_platform.storage import storage_path

    config = recipe(arguments.recipe).changed(parse_settings(arguments.set)).to_dict()
    data = str(storage_path(arguments.data))
    settings = {"config": config, "data": data, "data_hash": data_hash(data)}
    if not has_lesions(data):
        say("  no training case has a lesion mask: no lesion head, and no lesion terms in the loss")
    run = create_run(arguments.run, arguments.storage, {"verb": "train", **settings})
    model = launch(
        "train", "model", run, settings, _workers(arguments, arguments.recipe), mlflow=arguments.mlflow
    )
    return _result(run, model, "train")


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse distill`."""
    parser.add_argument("run", metavar="RUN", help="name or folder of a finished training run")
    parser.add_argument("--steps", type=int, choices=(1, 2, 4), default=4, help="sampler steps (%(default)s)")
    parser.add_argument(
        "--name",
        default="student",
        help="of the student's folder in the run, for several side by side (%(default)s)",
    )
    _add_common(parser)


def run_distill(arguments: argparse.Namespace) -> dict[str, Any]:
    """Distil the run's guided teacher into a student of few steps without gradients."""
    from clinfuse_platform.launch import launch

    if re.fullmatch(r"student[a-z0-9-]*", arguments.name) is None:
        raise ConfigError("--name", expected="student, student-1, …", found=repr(arguments.name))
    run, settings = _of_finished_run(arguments)
    settings["config"]["student_steps"] = arguments.steps
    job = arguments.name.replace("student", "distill", 1)
    if job != "distill":
        settings["plan"] = "distill"
    workers = _workers(arguments, settings["config"]["recipe"])
    model = launch(job, arguments.name, run, settings, workers, mlflow=arguments.mlflow)
    return _result(run, model, job)


def add_ensemble_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse ensemble`."""
    parser.add_argument("run", metavar="RUN", help="name or folder of a finished training run")
    parser.add_argument("--members", type=int, default=3, metavar="K", help="members in all (%(default)s)")
    parser.add_argument(
        "--base",
        choices=("student", "model"),
        help="what the members are like (the student, if there is one)",
    )
    _add_common(parser)


def run_ensemble(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train further members beside the run's student (or teacher), together where there is room."""
    from clinfuse_platform.members import JOB, train_members
    from clinfuse_platform.plans import member_name

    if arguments.members < 2:
        raise ConfigError("too few members", expected="--members 2 or more", found=str(arguments.members))
    run, settings = _of_finished_run(arguments)
    base = arguments.base or ("student" if run.has_model("student") else "model")
    if not run.has_model(base):
        raise InputError(f"run {run.name} has no {base}", todo=f"make it first (clinfuse distill {run.name})")
    settings |= {"base": str(run.path / base), "base_key": _key_of(run, base)}
    if base == "student":  # its members take as many steps as it does
        settings["config"]["student_steps"] = run.read_json(f"{base}/model_index.json")["student_steps"]
    workers = _workers(arguments, settings["config"]["recipe"])
    model = train_members(run, settings, arguments.members, workers, mlflow=arguments.mlflow)
    jobs = map(member_name, range(1, arguments.members))
    return _result(run, model, JOB, *jobs) | {"members": arguments.members}


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse calibrate`."""
    from clinfuse_platform.observer import LOOKS

    parser.add_argument("model", metavar="MODEL", help="model folder, or RUN, RUN/student, RUN/ensemble")
    parser.add_argument(
        "--data", required=True, metavar="D.zarr", help="dataset with training and validation cases"
    )
    parser.add_argument("--preset", default="balanced", help="preset used on them (%(default)s)")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")
    parser.add_argument(
        "--looks",
        type=int,
        default=LOOKS,
        metavar="N",
        help="how often the error head learns from each training case: more is better and takes longer (%(default)s)",
    )
    parser.add_argument("--slices", type=int, metavar="N", help="only N axial slices of each validation case")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="reverse steps (default: as the model is used)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (%(default)s)")


def check_calibrate(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be calibrated, or not on these cases."""
    from clinfuse_platform.calibrate import check_asked

    check_asked(arguments)


def run_calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit error head (training cases) and calibration (validation cases only) and write them into the model folder."""
    from clinfuse_platform.calibrate import calibrate_model

    return calibrate_model(
        arguments.model,
        arguments.data,
        arguments.preset,
        looks=arguments.looks,
        storage=arguments.storage,
        slices=arguments.slices,
        steps=arguments.steps,
        seed=arguments.seed,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")
    parser.add_argument(
        "--workers", default="1", metavar="N", help="training workers; 1:4 is an elastic group"
    )
    parser.add_argument(
        "--gpus-per-worker", type=float, metavar="G", help="default 1 for gpu recipes, else 0"
    )
    parser.add_argument(
        "--cpus-per-worker", type=int, default=0, metavar="C", help="default: the cores shared"
    )
    parser.add_argument("--mlflow", action="store_true", help="tell MLflow too (MLFLOW_TRACKING_URI)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one option of the recipe"
    )


def _workers(arguments: argparse.Namespace, recipe_name: str) -> Workers:
    from clinfuse_platform.launch import Workers

    gpus = arguments.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if recipe_name.startswith("gpu") else 0.0
    return Workers.parse(arguments.workers, gpus, arguments.cpus_per_worker)


def _of_finished_run(arguments: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run and the settings that its further jobs start from."""
    from clinfuse.training import TrainConfig
    from clinfuse_platform.runs import find_run

    run = find_run(arguments.run, arguments.storage)
    if not run.has_model("model"):
        raise InputError(
            f"run {run.name} has no trained model yet",
            expected="a finished clinfuse train",
            found=f"state {run.state('train')!r}",
            todo="repeat the train command; it goes on where it stopped",
        )
    known = run.read_json("config.json")
    config = TrainConfig.from_dict(known["config"]).changed(parse_settings(arguments.set))
    settings = {"config": config.to_dict(), "data": known["data"], "data_hash": known["data_hash"]}
    return run, settings | {"teacher": str(run.path / "model"), "teacher_key": _key_of(run, "model")}


def _key_of(run: Run, kind: str) -> str:
    """Hash of the model's weights: a job is done anew when what it builds on was trained anew, not when calibrated."""
    from clinfuse.model_files import FACTS, weights_hash

    return weights_hash(run.read_json(f"{kind}/{FACTS}"))


def _result(run: Run, model: UPath, job: str, *parts: str) -> dict[str, Any]:
    rows = run.metrics()
    rows = rows[rows["job"].isin((job, *parts))] if len(rows) else rows
    last = {}
    for phase, part in rows.groupby("phase") if len(rows) else ():
        last[str(phase)] = {k: v for k, v in part.iloc[-1].items() if k not in ("job", "phase")}
    state = run.read_json("state.json").get(job, {})
    return {
        "result": model,
        "run": run.name,
        "model_hash": run.read_json(f"{model.name}/metadata.json")["model_hash"],
        "seconds": state.get("seconds"),
        "last": last,
        "research_use": RESEARCH_USE,
    }


TRAIN = Verb(
    name="train",
    help="Train lesion head and denoiser on a dataset, on one or many workers.",
    add_arguments=add_train_arguments,
    run=run_train,
    needs_ray=True,
    check=check_data,
)
DISTILL = Verb(
    name="distill",
    help="Distil a run's guided teacher into a student of 1, 2 or 4 steps.",
    add_arguments=add_distill_arguments,
    run=run_distill,
    needs_ray=True,
)
ENSEMBLE = Verb(
    name="ensemble",
    help="Train further members beside a run's student, for epistemic uncertainty.",
    add_arguments=add_ensemble_arguments,
    run=run_ensemble,
    needs_ray=True,
)
CALIBRATE = Verb(
    name="calibrate",
    help="Calibrate a model's uncertainty on validation cases.",
    add_arguments=add_calibrate_arguments,
    run=run_calibrate,
    needs_ray=True,
    check=check_calibrate,
)

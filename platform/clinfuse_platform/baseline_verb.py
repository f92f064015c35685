"""The verb train-baseline: learned methods of others, reimplemented small, trained on the same data as ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse import RESEARCH_USE
from clinfuse.errors import ConfigError
from clinfuse.verbs import Verb

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("fusiondiff", "diffif", "ddfm", "test_time", "conv")
CROP_MULTIPLE = 8


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse train-baseline`."""
    parser.add_argument("data", metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument(
        "--kind", default="all", metavar="A,B", help=f"the papers' ideas: all, or some of {', '.join(KINDS)}"
    )
    parser.add_argument("--run", required=True, metavar="NAME", help="name of the run; the same name goes on")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each (%(default)s)")
    parser.add_argument("--crop", type=int, default=96, metavar="PIXELS", help="side of a crop (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="crops per step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (%(default)s)")
    parser.add_argument("--workers", default="1", metavar="N", help="training workers (%(default)s)")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="G", help="(%(default)s)")
    parser.add_argument("--cpus-per-worker", type=int, default=0, metavar="C", help="default: cores shared")


def run_baseline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the dataset's training split; the folder is named among the methods of `clinfuse evaluate`."""
    from clinfuse_platform.baseline_plan import JOB, trained_kinds
    from clinfuse_platform.launch import Workers, launch
    from clinfuse_platform.provenance import data_hash
    from clinfuse_platform.runs import create_run
    from clinfuse_platform.storage import storage_path

    config = config_of(arguments)
    workers = Workers.parse(arguments.workers, arguments.gpus_per_worker, arguments.cpus_per_worker)
    data = str(storage_path(arguments.data))
    settings = {"config": config, "data": data, "data_hash": data_hash(data)}
    run = create_run(arguments.run, arguments.storage, {"verb": "train-baseline", **settings})
    folder = launch(JOB, JOB, run, settings, workers)
    return {
        "result": folder,
        "run": run.name,
        "kinds": list(trained_kinds(Path(str(folder)))),
        "seconds": run.read_json("state.json").get(JOB, {}).get("seconds"),
        "last": last_losses(run.metrics()),
        "use": f"clinfuse evaluate {folder} --data …",
        "research_use": RESEARCH_USE,
    }


def last_losses(rows: pd.DataFrame) -> dict[str, float]:
    """The loss of each kind at the end of its training; their losses differ, so they say nothing of each other."""
    facts = {"job", "phase", "step", "seconds", "elapsed"}
    found: dict[str, float] = {}
    for kind, part in rows.groupby("phase") if len(rows) else ():
        own = [name for name in part.columns if name not in facts and part[name].notna().any()]
        found |= {f"{kind} {name}": float(part[name].dropna().iloc[-1]) for name in own}
    return found


def config_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The job's settings, checked.

    Raises:
        ConfigError: an unknown kind, or a number out of range.
    """
    named = [name.strip() for name in arguments.kind.split(",") if name.strip()]
    kinds = list(KINDS) if named == ["all"] else named
    unknown = [name for name in kinds if name not in KINDS]
    if unknown or not kinds:
        found = ", ".join(unknown) or "none"
        raise ConfigError("no such learned baseline", expected=f"all, or of {', '.join(KINDS)}", found=found)
    for name, least in (("steps", 1), ("batch_size", 1), ("crop", CROP_MULTIPLE)):
        if getattr(arguments, name) < least:
            raise ConfigError(
                f"{name} is too small", expected=f"{least} or more", found=str(getattr(arguments, name))
            )
    if arguments.crop % CROP_MULTIPLE:
        raise ConfigError(
            "the crop does not fit", expected=f"a multiple of {CROP_MULTIPLE}", found=str(arguments.crop)
        )
    names = ("steps", "crop", "batch_size", "learning_rate", "seed")
    return {"kinds": kinds, **{name: getattr(arguments, name) for name in names}}


TRAIN_BASELINE = Verb(
    name="train-baseline",
    help="train small reimplementations of other learned fusion methods on the same data",
    add_arguments=add_baseline_arguments,
    run=run_baseline,
    needs_ray=True,
)

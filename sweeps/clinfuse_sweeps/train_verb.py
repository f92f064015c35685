"""`clinfuse sweep-train`: search training-time values; each trial is a Ray Train run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinfuse.console import step
from clinfuse.errors import ConfigError
from clinfuse.presets import find_preset, load_presets
from clinfuse.verbs import Verb, parse_settings
from clinfuse_sweeps.common import add_search_arguments, conclude, parse_limits, shared_folder


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument("--recipe", default="cpu-small", help="recipe to vary (default cpu-small)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the recipe for all trials",
    )
    parser.add_argument("--preset", default="balanced", help="preset under which models are compared")
    parser.add_argument("--trials", type=int, default=12, metavar="N", help="runs to train (default 12)")
    parser.add_argument(
        "--out", type=shared_folder, required=True, metavar="DIR", help="sweep folder to write"
    )
    parser.add_argument(
        "--rungs",
        type=int,
        default=3,
        metavar="N",
        help="measure a run at 1/9, 1/3 and all of its steps; what others dominate there stops, the best third aside "
        "(default 3; 1: all whole)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="training workers of one trial")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="G")
    parser.add_argument("--cpus-per-worker", type=int, default=1, metavar="C")
    add_search_arguments(
        parser, "learning_rate=1e-4..3e-3:log, seam_weight=0..50, jitter_share=fixed; repeatable"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_platform.provenance import data_hash, has_lesions
    from clinfuse_platform.runs import flat
    from clinfuse_platform.storage import storage_path

    from clinfuse_sweeps.fusion_evaluator import FusionSettings, check_cases, load_slabs
    from clinfuse_sweeps.overrides import parse_axis
    from clinfuse_sweeps.plan import Plan
    from clinfuse_sweeps.space import TRAIN_RANGES, space_of_training
    from clinfuse_sweeps.train_evaluator import TrainRecipe, TrainSettings

    changes = parse_settings(args.set)
    config = _recipe(args.recipe).changed(changes).to_dict()
    preset = find_preset(load_presets(), args.preset)
    own = {name: float(value) for name, value in flat(config).items() if name in TRAIN_RANGES} | {
        "width": 1.0
    }
    space = space_of_training(preset, own, dict(parse_axis(text) for text in args.space))
    out: Path = args.out.resolve()
    with step("reading cases"):
        slabs = load_slabs(args.data, split=args.split, slices=args.slices, limit=args.cases)
        facts = {
            "data_hash": data_hash(args.data),
            "cases": [slab.case_id for slab in slabs],
            "split": args.split,
            "slices": args.slices,
            "steps": args.steps,
            "recipe": args.recipe,
            "set": changes,
            "workers": args.workers,
            "simulated": any(bool(slab.attrs.get("simulated")) for slab in slabs),
        }
        plan = Plan(
            spaces={preset.name: space},
            trials=args.trials,
            objectives=tuple(args.objectives),
            limits=parse_limits(args.limit),
            sampler=args.sampler,
            seed=args.seed,
            slots=args.slots or _slots(args),
            rungs=args.rungs,
            facts=facts,
        )
        check_cases(slabs, plan.goals, plan.limits, lesion_head=has_lesions(args.data))
    settings = TrainSettings(
        config=config,
        data=str(storage_path(args.data)),
        data_hash=str(facts["data_hash"]),
        storage=str(out / "runs"),
        workers=args.workers,
        gpus=args.gpus_per_worker,
        cpus=args.cpus_per_worker,
        fusion=FusionSettings(
            model="", spaces=plan.spaces, steps=args.steps, seed=args.seed, pictures=str(out / "pictures")
        ),
    )
    return conclude(plan, TrainRecipe(settings, slabs), slabs, out, resume=args.resume, logs=args.log)


def _recipe(name: str) -> Any:
    from clinfuse.training import RECIPES, recipe

    if name not in RECIPES:
        raise ConfigError("no such recipe", expected=f"one of {', '.join(RECIPES)}", found=name)
    return recipe(name)


def _slots(args: argparse.Namespace) -> int:
    """Trials that fit at a time, each with its training workers and one CPU that waits for them."""
    import ray

    there = ray.cluster_resources()
    fit = [int(there.get("CPU", 1) / (1 + args.workers * args.cpus_per_worker))]
    if args.gpus_per_worker > 0:
        fit.append(int(there.get("GPU", 0) / (args.workers * args.gpus_per_worker)))
    if min(fit) < 1:
        raise ConfigError(
            "the cluster is too small for one trial",
            expected=f"{1 + args.workers * args.cpus_per_worker} CPUs, {args.workers * args.gpus_per_worker:g} GPUs",
            found=f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs",
            todo="ask for fewer --workers",
        )
    return min(fit)


SWEEP_TRAIN = Verb(
    name="sweep-train",
    help="Search training-time values (learning rate, λ_roi, jitter); each trial is a Ray Train run.",
    add_arguments=_arguments,
    run=_run,
    needs_ray=True,
)

"""`clinfuse sweep`: search preset weights, guidance and jitter around presets, on one model."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.console import say, step
from clinfuse.errors import ConfigError
from clinfuse.presets import Preset, find_preset, load_presets
from clinfuse.verbs import Verb
from clinfuse_sweeps.common import add_search_arguments, conclude, parse_limits, shared_folder, words

if TYPE_CHECKING:
    from clinfuse.case import Case
    from clinfuse_sweeps.plan import Plan
    from clinfuse_sweeps.space import Axis


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, RUN (its teacher), RUN/student or RUN/ensemble"
    )
    parser.add_argument("--data", required=True, metavar="D.zarr", help="prepared cases")
    parser.add_argument(
        "--presets", type=words, required=True, metavar="A,B", help="presets to search around"
    )
    parser.add_argument("--presets-file", type=Path, metavar="F", help="YAML file with presets of your own")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="trials per preset (default 40)")
    parser.add_argument(
        "--out", type=shared_folder, required=True, metavar="DIR", help="sweep folder to write"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument("--storage", default="runs", help="where runs are (default ./runs)")
    add_search_arguments(parser, "all, or tau_mm, eta=0.1..5:log, steps=4..50, kappa=fixed; repeatable")
    cost = parser.add_argument_group("cost of a trial")
    cost.add_argument("--members", type=int, metavar="K", help="ensemble members asked (default all)")
    cost.add_argument("--halving", action="store_true", help="stop a trial once cases seen show it dominated")
    cost.add_argument("--cpus-per-trial", type=float, default=1.0, metavar="C", help="default 1")
    cost.add_argument("--gpus-per-trial", type=float, default=0.0, metavar="G", help="may be a fraction")


def _presets(names: Sequence[str], file: Path | None) -> dict[str, Preset]:
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            "the presets cannot be used", expected="at least one, none twice", found=",".join(names)
        )
    known = load_presets(file)
    return {name: find_preset(known, name) for name in names}


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_platform.lineage import note_use
    from clinfuse_platform.runs import find_model

    from clinfuse_sweeps.fusion_evaluator import FusionRecipe, FusionSettings, check_cases, load_slabs

    presets = _presets(args.presets, args.presets_file)
    model = find_model(args.model, args.storage)
    out: Path = args.out.resolve()
    with step("reading cases"):
        slabs = load_slabs(args.data, split=args.split, slices=args.slices, limit=args.cases)
        plan = _plan(args, presets, model, slabs)
        check_cases(slabs, plan.goals, plan.limits, lesion_head=_index(model).get("lesion_head") is not None)
    settings = FusionSettings(
        model=_for_workers(args.model, args.storage, model),
        spaces=plan.spaces,
        steps=args.steps,
        members=args.members,
        seed=args.seed,
        threads=max(1, int(args.cpus_per_trial)),
        device="cuda" if args.gpus_per_trial > 0 else "cpu",
        pictures=str(out / "pictures"),
    )
    done = conclude(plan, FusionRecipe(settings, slabs), slabs, out, resume=args.resume, logs=args.log)
    note_use(settings.model, "sweep", str(out), {"presets": list(presets), "trials": done["trials"]})
    return done


def _for_workers(name: str, storage: str, found: Path) -> str:
    """The model as every worker can reach it: by URL if it lies in an object store, else by its folder."""
    if "://" in name:
        return name
    return f"{storage.rstrip('/')}/{name}" if "://" in storage and not Path(name).exists() else str(found)


def _plan(args: argparse.Namespace, presets: dict[str, Preset], model: Path, slabs: Sequence[Case]) -> Plan:
    from clinfuse_sweeps.overrides import read_overrides
    from clinfuse_sweeps.plan import Plan
    from clinfuse_sweeps.space import SCHEDULES, space_around

    fixed = _unguided(model)
    schedule = json.loads((model / "scheduler" / "config.json").read_text(encoding="utf-8"))["sampler"]
    own = {"schedule": float(SCHEDULES.index(schedule))}
    spaces = {
        name: space_around(preset, {**fixed, **read_overrides(args.space, preset), **fixed}, own)
        for name, preset in presets.items()
    }
    return Plan(
        spaces=spaces,
        trials=args.trials,
        objectives=tuple(args.objectives),
        limits=parse_limits(args.limit),
        sampler=args.sampler,
        seed=args.seed,
        slots=args.slots or slots_of(args.cpus_per_trial, args.gpus_per_trial),
        cpus=args.cpus_per_trial,
        gpus=args.gpus_per_trial,
        halving=args.halving,
        facts=_facts(args, model, slabs),
    )


def _index(model: Path) -> dict[str, Any]:
    """What the model folder holds."""
    found: dict[str, Any] = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    return found


def _unguided(model: Path) -> dict[str, Axis | None]:
    """A student takes no guided steps: what only guides it is not searched, and the person is told."""
    if _index(model).get("kind") != "student":
        return {}
    say("  a student takes no guided steps: eta, eta_u and kappa are not searched (a teacher's run would)")
    return {"eta": None, "eta_u": None, "kappa": None}


def _facts(args: argparse.Namespace, model: Path, slabs: Sequence[Case]) -> dict[str, Any]:
    from clinfuse_platform.provenance import data_hash

    card = json.loads((model / "metadata.json").read_text(encoding="utf-8"))
    return {
        "model_hash": card.get("model_hash", ""),
        "data_hash": data_hash(args.data),
        "cases": [slab.case_id for slab in slabs],
        "split": args.split,
        "slices": args.slices,
        "steps": args.steps,
        "members": args.members,
        "simulated": any(bool(slab.attrs.get("simulated")) for slab in slabs),
    }


def slots_of(cpus: float, gpus: float) -> int:
    """Trials that fit at a time, by CPUs and by GPUs (a share of one counts); on one machine its real cores."""
    import ray

    there = ray.cluster_resources()
    count = there.get("CPU", 1.0)
    if gpus == 0 and len(ray.nodes()) == 1:  # a local session may count more CPUs than the machine has
        count = min(count, os.cpu_count() or 1)
    fit = [int(count / max(cpus, 0.1))]
    if gpus > 0:
        fit.append(int(there.get("GPU", 0) / gpus))
    return max(1, min(fit))


SWEEP = Verb(
    name="sweep",
    help="Search preset weights, guidance and jitter around presets; several objectives at once.",
    add_arguments=_arguments,
    run=_run,
    needs_ray=True,
)

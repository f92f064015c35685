"""The sweeps on the command line: `clinfuse sweep` and `clinfuse pareto`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.console import say, step
from clinfuse.errors import ConfigError, InputError
from clinfuse.presets import Preset, find_preset, load_presets
from clinfuse.verbs import Verb

if TYPE_CHECKING:
    from clinfuse.case import Case
    from clinfuse_sweeps.compare import Comparison, Sweep
    from clinfuse_sweeps.plan import Plan


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder, or a run (its model is taken)")
    parser.add_argument("--data", type=Path, required=True, metavar="D.zarr", help="prepared cases")
    parser.add_argument(
        "--presets", type=_words, required=True, metavar="A,B", help="presets to search around"
    )
    parser.add_argument("--presets-file", type=Path, metavar="F", help="YAML file with presets of your own")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="trials per preset (default 40)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="sweep folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="where runs are (default ./runs)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--objectives",
        type=_words,
        default=["brain_ssim", "bone_ssim"],
        metavar="A,B",
        help="two or more metrics",
    )
    search.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="M>=X",
        help="constraint, e.g. bone_ssim>=0.6; repeatable",
    )
    search.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="eta=0.1..5:log, steps=4..50, kappa=fixed; repeatable",
    )
    search.add_argument("--sampler", default="tpe", help="tpe, nsga2, nsga3, gp, or random (default tpe)")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument(
        "--halving", action="store_true", help="stop a trial when cases seen show it dominated"
    )
    cost = parser.add_argument_group("cost of a trial")
    cost.add_argument("--split", default="val", help="cases of this split (default val)")
    cost.add_argument("--cases", type=int, metavar="N", help="at most so many cases")
    cost.add_argument(
        "--slices", type=int, metavar="N", help="a slab of N slices per case (default: whole case)"
    )
    cost.add_argument(
        "--steps", type=int, metavar="N", help="sampler steps (default: the preset's or student's)"
    )
    cost.add_argument("--members", type=int, metavar="K", help="ensemble members asked (default all)")
    cost.add_argument("--slots", type=int, metavar="N", help="trials at a time (default: by CPUs or GPUs)")
    cost.add_argument("--cpus-per-trial", type=float, default=1.0, metavar="C")
    cost.add_argument("--gpus-per-trial", type=float, default=0.0, metavar="G", help="may be a fraction")


def model_folder(name: str, storage: Path) -> Path:
    """The model folder meant by a path to a model, a path to a run, or a run's name.

    Raises:
        InputError: none of these exists.
    """
    for place in (Path(name), storage / name):
        for folder in (place, place / "model"):
            if (folder / "model_index.json").is_file():
                return folder.resolve()
    raise InputError(
        "there is no such model",
        expected="a model folder, a run folder, or the name of a run",
        found=name,
        todo="train one (clinfuse train), or give --storage",
    )


def _presets(names: Sequence[str], file: Path | None) -> dict[str, Preset]:
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            "the presets cannot be used", expected="at least one, none twice", found=",".join(names)
        )
    known = load_presets(file)
    return {name: find_preset(known, name) for name in names}


def _run_sweep(args: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_sweeps.compare import open_sweep
    from clinfuse_sweeps.fusion_evaluator import FusionRecipe, FusionSettings, check_cases, load_slabs
    from clinfuse_sweeps.pictures import source_strips
    from clinfuse_sweeps.runner import run_sweep

    model = model_folder(args.model, args.storage)
    out: Path = args.out.resolve()
    presets = _presets(args.presets, args.presets_file)
    with step("reading cases"):
        slabs = load_slabs(args.data, split=args.split, slices=args.slices, limit=args.cases)
        plan = _plan(args, presets, model, slabs)
        check_cases(slabs, plan.goals, plan.limits)
    settings = FusionSettings(
        model=str(model),
        spaces=plan.spaces,
        steps=args.steps,
        members=args.members,
        seed=args.seed,
        threads=max(1, int(args.cpus_per_trial)),
        device="cuda" if args.gpus_per_trial > 0 else "cpu",
        pictures=str(out / "pictures"),
    )
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, png in source_strips(slabs).items():
        (pictures / f"{name}.png").write_bytes(png)
    with step(f"sweep: {len(presets)} presets × {plan.trials} trials, {plan.slots} at a time"):
        result = run_sweep(plan, FusionRecipe(settings, slabs), out, resume=args.resume)
    with step("report"):
        _, path = _report([open_sweep(out)], out, title="Sweep: " + ", ".join(presets))
    table = result.table
    return {
        "result": str(path),
        "trials": len(table),
        "completed": int((table["state"] == "complete").sum()),
        "failed": int((table["state"] == "failed").sum()),
        "wall_seconds": round(result.wall_seconds, 2),
        "compute_seconds": round(result.compute_seconds, 2),
        "wall_ratio": round(result.wall_seconds * plan.slots / max(result.compute_seconds, 1e-9), 3),
    }


def _plan(args: argparse.Namespace, presets: dict[str, Preset], model: Path, slabs: Sequence[Case]) -> Plan:
    from clinfuse_sweeps.goals import parse_limit
    from clinfuse_sweeps.plan import Plan
    from clinfuse_sweeps.space import parse_axis, space_around

    overrides = dict(parse_axis(text) for text in args.space)
    return Plan(
        spaces={name: space_around(preset, overrides) for name, preset in presets.items()},
        trials=args.trials,
        objectives=tuple(args.objectives),
        limits=tuple(parse_limit(text) for text in args.limit),
        sampler=args.sampler,
        seed=args.seed,
        slots=args.slots or _slots(args.cpus_per_trial, args.gpus_per_trial),
        cpus=args.cpus_per_trial,
        gpus=args.gpus_per_trial,
        halving=args.halving,
        facts=_facts(args, model, slabs),
    )


def _facts(args: argparse.Namespace, model: Path, slabs: Sequence[Case]) -> dict[str, Any]:
    from clinfuse_sweeps.provenance import data_hash, model_hash

    return {
        "model_hash": model_hash(model),
        "data_hash": data_hash(slabs),
        "cases": [slab.case_id for slab in slabs],
        "split": args.split,
        "slices": args.slices,
        "steps": args.steps,
        "members": args.members,
        "simulated": any(bool(slab.attrs.get("simulated")) for slab in slabs),
    }


def _slots(cpus: float, gpus: float) -> int:
    """Trials that fit at a time: by GPUs if they are asked for, else by CPUs; on one machine its real cores."""
    import ray

    there = ray.cluster_resources()
    if gpus > 0:
        return max(1, int(there.get("GPU", 0) / gpus))
    count = there.get("CPU", 1.0)
    if len(ray.nodes()) == 1:  # a local session may count more CPUs than the machine has
        count = min(count, os.cpu_count() or 1)
    return max(1, int(count / max(cpus, 0.1)))


def _report(
    sweeps: Sequence[Sweep],
    out: Path,
    *,
    title: str,
    presets: Sequence[str] | None = None,
    objectives: Sequence[str] | None = None,
    name: str = "report",
) -> tuple[Comparison, Path]:
    from clinfuse_sweeps.compare import compare
    from clinfuse_sweeps.figures import fronts_figure, png
    from clinfuse_sweeps.goals import find_goals
    from clinfuse_sweeps.report import report
    from clinfuse_sweeps.trials import write_text

    goals = find_goals(objectives) if objectives else None
    comparison = compare(sweeps, presets=presets, goals=goals)
    path = write_text(report(comparison, sweeps, title=title), out / f"{name}.html")
    (out / f"{name}.png").write_bytes(png(fronts_figure, comparison))
    return comparison, path


def _pareto_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP", help="sweep folders")
    parser.add_argument("--presets", type=_words, metavar="A,B", help="which presets (default all)")
    parser.add_argument("--objectives", type=_words, metavar="A,B", help="default: those of the first sweep")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default SWEEP/pareto)")
    parser.add_argument("--export", metavar="PRESET", help="write this preset's knee as a presets file")
    parser.add_argument("--trial", metavar="ID", help="with --export: this trial instead of the knee")
    parser.add_argument("--name", metavar="NAME", help="with --export: name of the new preset")


def _run_pareto(args: argparse.Namespace) -> dict[str, Any]:
    import pandas as pd

    from clinfuse_sweeps.compare import open_sweep
    from clinfuse_sweeps.export import export_preset
    from clinfuse_sweeps.trials import write_table

    sweeps = [open_sweep(folder.resolve()) for folder in args.sweeps]
    out: Path = (args.out or sweeps[0].folder / "pareto").resolve()
    out.mkdir(parents=True, exist_ok=True)
    comparison, path = _report(
        sweeps,
        out,
        title="Pareto comparison",
        presets=args.presets,
        objectives=args.objectives,
        name="pareto",
    )
    fronts = [entry.table[entry.table["on_front"]].assign(entry=entry.label) for entry in comparison.entries]
    write_table(pd.concat(fronts).drop(columns="folder"), out / "fronts.parquet")
    write_table(comparison.numbers, out / "numbers.parquet")
    found: dict[str, Any] = {"result": str(path), "numbers": comparison.numbers.to_dict("records")}
    for row in found["numbers"]:
        say(f"  {row['preset']}: hypervolume {row['hypervolume']:.4f}, {row['front']} trials on the front")
    if args.export:
        exported = export_preset(comparison, sweeps, args.export, out, trial=args.trial, name=args.name)
        found["preset"] = str(exported)
        say(f"  preset file: {exported}")
    return found


SWEEP = Verb(
    name="sweep",
    help="Search preset weights, guidance and jitter around presets; several objectives at once.",
    add_arguments=_sweep_arguments,
    run=_run_sweep,
    needs_ray=True,
)
PARETO = Verb(
    name="pareto",
    help="Compare the fronts of sweeps: hypervolume, attainment, knee; export a preset.",
    add_arguments=_pareto_arguments,
    run=_run_pareto,
)

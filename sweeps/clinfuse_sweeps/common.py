"""What the verbs of this room share: arguments of the search, running a plan, and writing its report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse_platform.storage import write_atomic

from clinfuse.console import step

if TYPE_CHECKING:
    from clinfuse.case import Case
    from clinfuse_sweeps.compare import Comparison, Sweep
    from clinfuse_sweeps.goals import Limit
    from clinfuse_sweeps.plan import Plan
    from clinfuse_sweeps.trainable import EvaluatorRecipe


def words(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shared_folder(text: str) -> Path:
    """A folder on a file system that the driver and all workers see.

    Raises:
        ArgumentTypeError: a URL; the journal needs file locks, which object stores do not have.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            "a sweep needs a shared file system (its journal is locked), not a URL"
        )
    return Path(text)


def add_search_arguments(parser: argparse.ArgumentParser, ranges: str) -> None:
    """Arguments that say what is searched, how, and on which cases.

    Args:
        parser: the verb's.
        ranges: examples of ranges, for the help text.
    """
    search = parser.add_argument_group("search")
    search.add_argument(
        "--objectives",
        type=words,
        default=["brain_ssim", "bone_ssim"],
        metavar="A,B",
        help="two or more metrics (default brain_ssim,bone_ssim)",
    )
    search.add_argument(
        "--limit", action="append", default=[], metavar="M>=X", help="constraint: bone_ssim>=0.6; repeatable"
    )
    search.add_argument("--space", action="append", default=[], metavar="NAME=RANGE", help=ranges)
    search.add_argument(
        "--sampler",
        default="auto",
        help="auto (default), gp, tpe, nsga2, nsga3, or random or grid as baseline",
    )
    search.add_argument("--seed", type=int, default=0, help="of the search and of the fusion's noise")
    search.add_argument("--slots", type=int, metavar="N", help="trials at a time (default: as many as fit)")
    search.add_argument(
        "--log", action="append", default=[], metavar="TO", help="also tell trials to tensorboard or mlflow"
    )
    cases = parser.add_argument_group("cases")
    cases.add_argument("--split", default="val", help="cases of this split (default val)")
    cases.add_argument("--cases", type=int, metavar="N", help="at most so many cases")
    cases.add_argument("--slices", type=int, metavar="N", help="a slab of N slices per case (default: all)")
    cases.add_argument("--steps", type=int, metavar="N", help="sampler steps (default: the model's own)")


def parse_limits(texts: Sequence[str]) -> tuple[Limit, ...]:
    """The constraints of the command line."""
    from clinfuse_sweeps.goals import parse_limit

    return tuple(parse_limit(text) for text in texts)


def conclude(
    plan: Plan,
    recipe: EvaluatorRecipe,
    cases: Sequence[Case],
    out: Path,
    *,
    resume: bool,
    logs: Sequence[str] = (),
) -> dict[str, Any]:
    """Keep the sources' pictures, run the plan, write the report; the verb's result."""
    from clinfuse_sweeps.compare import open_sweep
    from clinfuse_sweeps.pictures import source_strips
    from clinfuse_sweeps.runner import run_sweep
    from clinfuse_sweeps.trial_logs import open_logs, tell_all

    with open_logs(logs, out) as opened:
        pictures = out / "pictures"
        for name, png in source_strips(cases).items():
            write_atomic(pictures / f"{name}.png", png)
        names = ", ".join(plan.spaces)
        with step(f"sweep of {names}: {plan.trials} trials each, {plan.slots} at a time"):
            result = run_sweep(plan, recipe, out, resume=resume, on_trial=partial(tell_all, opened))
    with step("report"):
        _, path = write_report([open_sweep(out)], out, title=f"Sweep: {names}")
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


def write_report(
    sweeps: Sequence[Sweep],
    out: Path,
    *,
    title: str,
    presets: Sequence[str] | None = None,
    objectives: Sequence[str] | None = None,
    name: str = "report",
) -> tuple[Comparison, Path]:
    """Compare the sweeps; write `<name>.html`, `<name>.png` (fronts), and -matrix and -parallel beside it."""
    from clinfuse_sweeps.compare import compare
    from clinfuse_sweeps.figures import fronts_figure, parallel_coordinates, png
    from clinfuse_sweeps.goals import find_goals
    from clinfuse_sweeps.report import report
    from clinfuse_sweeps.scatter_matrix import scatter_matrix

    goals = find_goals(objectives) if objectives else None
    comparison = compare(sweeps, presets=presets, goals=goals)
    path = out / f"{name}.html"
    write_atomic(path, report(comparison, sweeps, title=title))
    write_atomic(out / f"{name}.png", png(fronts_figure, comparison))
    write_atomic(out / f"{name}-matrix.png", png(scatter_matrix, comparison))
    write_atomic(out / f"{name}-parallel.png", png(parallel_coordinates, comparison))
    return comparison, path

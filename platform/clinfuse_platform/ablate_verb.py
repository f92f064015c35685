"""`clinfuse ablate`: ablations of one model, and of its training, as table and figures."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinfuse import RESEARCH_USE
from clinfuse.folders import check_writable
from clinfuse.verbs import Verb
from clinfuse_platform.evaluate_methods import model_of, preset_of
from clinfuse_platform.evaluate_verb import add_common_arguments, cases_of, jobs_of

OUT = "ablations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse ablate`."""
    from clinfuse_platform.ablations import ABLATIONS

    parser.add_argument("model", metavar="MODEL", help="model folder or run; the teacher, as a rule")
    parser.add_argument("--preset", default="balanced", help="clinical preset to start from (%(default)s)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"some of {', '.join(ABLATIONS)}")
    parser.add_argument("--steps", type=int, default=10, help="reverse steps but in 'steps' (%(default)s)")
    parser.add_argument(
        "--retrain",
        metavar="RECIPE",
        help="also train small models by this recipe, each without one part of the method, and compare them",
    )
    parser.add_argument(
        "--students",
        action="store_true",
        help="MODEL is a run: also distil students of 1, 2 and 4 steps, and compare them with their teacher",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the recipe of what is trained, for all of it alike",
    )
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the ablations; `lost` counts cases that failed."""
    from clinfuse.console import counted, say
    from clinfuse.method.error_head import FILE as ERROR_HEAD
    from clinfuse_platform.ablate_parts import distilled, retrained
    from clinfuse_platform.ablate_report import write_ablations
    from clinfuse_platform.ablations import chosen, labelled
    from clinfuse_platform.evaluate import failed_cases, run_jobs
    from clinfuse_platform.variants import Variant

    out = Path(arguments.out or OUT)
    folder, model_hash = model_of(arguments.model, arguments.storage)
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    ablations = chosen(names, error_head=(folder / ERROR_HEAD).is_file())
    base = Variant(
        label="base",
        model=str(folder),
        model_hash=model_hash,
        preset=preset_of(arguments.preset, str(folder)).as_dict(),
        steps=arguments.steps,
        seed=arguments.seed,
    )
    if arguments.retrain:
        ablations += retrained(base, arguments.retrain, arguments.set, arguments.data, out / "runs")
    if arguments.students:
        ablations.append(distilled(base, arguments.model, arguments.set, arguments.storage))
    variants = [variant for ablation in ablations for variant in labelled(ablation, base)]
    case_ids = cases_of(arguments)
    jobs = [replace(job, picture="", slice_picture="") for job in jobs_of(variants, case_ids, arguments, out)]
    say(
        f"  {counted(len({job.part for job in jobs}), 'fusion')} for {counted(len(ablations), 'ablation')} "
        f"on {counted(len(case_ids), 'case')}"
    )
    rows = run_jobs(jobs, arguments.data, actors=arguments.actors)
    files = write_ablations(rows, ablations, variants, out)
    return {
        "result": files["report"],
        **{name: path for name, path in files.items() if name != "report"},
        "ablations": [ablation.name for ablation in ablations],
        "cases": len(case_ids),
        "lost": failed_cases(rows),
        "research_use": RESEARCH_USE,
    }


def check_asked(arguments: argparse.Namespace) -> None:
    """Refuse a place that cannot be written, and what `cases_of` refuses, before a session starts."""
    check_writable(arguments.out or OUT)
    cases_of(arguments)


ABLATE = Verb(
    name="ablate",
    help="Ablate a model: guidance, weights, masks, modulation, steps, sampler, jitter, …; and its training.",
    add_arguments=add_arguments,
    run=run,
    needs_ray=True,
    check=check_asked,
)

"""`clinfuse evaluate`: models and baselines side by side on a split, as Parquet, Markdown and a page to read."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse import RESEARCH_USE
from clinfuse.errors import ConfigError, InputError
from clinfuse.folders import check_writable
from clinfuse.verbs import Verb
from clinfuse_platform.evaluate_methods import methods_of, model_of

if TYPE_CHECKING:
    import pandas as pd

    from clinfuse_platform.evaluate import Job
    from clinfuse_platform.variants import Variant

RECIPES, OUT = ("aanlib",), "evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse evaluate`."""
    parser.add_argument(
        "methods",
        nargs="*",
        metavar="MODEL|METHOD",
        help="model folders, runs, folders of trained baselines, NAME=FOLDER of fused images, or baselines: "
        "mean, max, mri, ct, hard_roi, prior, refined, laplacian, wavelet, guided_filter",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="a stated evaluation: the fusion field's table on AANLIB, by patient",
    )
    parser.add_argument("--preset", default="balanced", help="clinical preset (%(default)s)")
    add_common_arguments(parser)
    parser.add_argument(
        "--steps", type=int, metavar="N", help="reverse steps of teachers (default: the preset's)"
    )
    parser.add_argument("--members", type=int, metavar="K", help="ensemble members to ask (default: all)")
    parser.add_argument("--samples", type=int, default=1, help="noise draws per member (%(default)s)")
    parser.add_argument("--jitters", type=int, default=0, help="further draws with warps (%(default)s)")
    parser.add_argument("--bare", action="store_true", help="leave out the trivial baselines")
    parser.add_argument(
        "--amplitudes", default="", metavar="MM,MM", help="also measure under misregistration, e.g. 0,1,2,4"
    )
    parser.add_argument(
        "--downstream",
        type=int,
        default=0,
        metavar="STEPS",
        help="also train a segmentation network of so many steps on each method's images",
    )
    parser.add_argument(
        "--card", action="store_true", help="put the model card into the first model's folder too"
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What evaluate and ablate share: data, cases, amount of work, where results go."""
    parser.add_argument("--data", metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="(%(default)s)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases of the split")
    parser.add_argument("--slices", type=int, metavar="N", help="only N axial slices about the lesion")
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="model folder or run whose lesion head finds the lesions in all images; where guidance is judged, take "
        "one that guidance has not seen (default: the first model's)",
    )
    parser.add_argument("--metrics", choices=("roi", "all", "field"), default="roi", help="(%(default)s)")
    parser.add_argument("--out", metavar="DIR", help="where results go; the same folder goes on")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and warps (%(default)s)")
    parser.add_argument("--actors", type=int, default=0, help="cases at once (default: GPUs, else cores)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate every method on every case of the split; `lost` counts cases that a method, or its probe, failed on."""
    from clinfuse.console import counted, say
    from clinfuse_platform.evaluate import failed_cases, run_jobs
    from clinfuse_platform.evaluate_report import write_evaluation
    from clinfuse_platform.evaluate_shift import amplitudes_of

    out = Path(arguments.out or OUT)
    amplitudes = amplitudes_of(arguments.amplitudes)
    if arguments.recipe:
        from clinfuse_platform.evaluate_recipes import prepared

        prepared(arguments, out)
    variants = methods_of(arguments)
    case_ids = cases_of(arguments)
    jobs = jobs_of(variants, case_ids, arguments, out)
    say(f"  {counted(len(variants), 'method')} on {counted(len(case_ids), 'case')}")
    rows = run_jobs(jobs, arguments.data, actors=arguments.actors)
    shifts = shift_rows(variants, case_ids, arguments, out, amplitudes) if amplitudes else None
    probe = downstream_rows(variants, arguments, out) if arguments.downstream else None
    files = write_evaluation(
        rows,
        out,
        arguments.data,
        jobs,
        shifts=shifts,
        downstream=probe,
        split=arguments.split,
        card=arguments.card,
    )
    goals = goals_reached(files["summary"], variants[0].label, arguments.split)
    if arguments.recipe and not getattr(arguments, "json", False):
        sys.stdout.write(files["table"].read_text(encoding="utf-8"))
    return {
        "result": files["report"],
        **{name: path for name, path in files.items() if name != "report"},
        "methods": [variant.label for variant in variants],
        "goals": goals,
        "cases": len(case_ids),
        "lost": sum(failed_cases(table) for table in (rows, shifts, probe) if table is not None),
        "research_use": RESEARCH_USE,
    }


def goals_reached(summary: Path, method: str, split: str) -> dict[str, Any]:
    """Say which goals one method reaches, and return it as `standing` does; {} on a split that has none."""
    import pandas as pd

    from clinfuse.console import say
    from clinfuse.evaluation.goals import SPLIT, standing, standing_line

    if split != SPLIT:
        return {}
    found = standing(pd.read_parquet(summary), method)
    say(f"  {standing_line(found)}")
    return found


def check_asked(arguments: argparse.Namespace) -> None:
    """Refuse a command without methods or data, with impossible numbers or a place that cannot be written (--out, and
    with --card the first model's folder), before a session starts.

    Raises:
        ConfigError: one of these. InputError: no such dataset, cases or method.
    """
    check_writable(arguments.out or OUT)
    if arguments.downstream < 0:
        raise ConfigError(
            "--downstream is too small", expected="1 or more steps", found=str(arguments.downstream)
        )
    if arguments.downstream and arguments.split == "train":
        raise ConfigError(
            "--downstream learns from the training split",
            expected="patients held out from it",
            found="--split train",
            todo="measure on --split test or val",
        )
    if not arguments.recipe:  # which brings methods and dataset of its own
        if not arguments.methods and arguments.bare:
            raise ConfigError("nothing to evaluate", expected="a model or a method", found="none and --bare")
        cases_of(arguments)
    models = [variant.model for variant in methods_of(arguments) if variant.model]
    if arguments.card and models:
        check_writable(models[0], "--card, the model's folder,")


def shift_rows(
    variants: list[Variant],
    case_ids: list[str],
    arguments: argparse.Namespace,
    out: Path,
    amplitudes: tuple[float, ...],
) -> pd.DataFrame:
    """Every method at every amplitude of misregistration; rows with a column amplitude_mm."""
    from clinfuse.console import say
    from clinfuse_platform.evaluate import run_jobs
    from clinfuse_platform.evaluate_shift import shift_jobs, shifted, split_labels

    jobs = shift_jobs(jobs_of(shifted(variants, amplitudes), case_ids, arguments, out, metrics="roi"))
    say(f"  misregistration of {', '.join(f'{mm:g}' for mm in amplitudes)} mm: {len(jobs)} fusions")
    return split_labels(run_jobs(jobs, arguments.data, actors=arguments.actors))


def downstream_rows(variants: list[Variant], arguments: argparse.Namespace, out: Path) -> pd.DataFrame:
    """The same small network trained on MRI, CT, both, and each method's F; metric rows of the held-out cases."""
    from clinfuse_platform.evaluate_downstream import measured

    return measured(variants, arguments, out)


def cases_of(arguments: argparse.Namespace) -> list[str]:
    """Ids of the split's cases, as many as asked.

    Raises:
        InputError: the split is empty. ConfigError: no --data, or --cases or --slices below 1.
    """
    from clinfuse_prep.store import CaseStore

    if not arguments.data:
        raise ConfigError(
            "no dataset", expected="--data D.zarr", found="nothing", todo="make one: clinfuse prep"
        )
    for name in ("cases", "slices"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is too small", expected="1 or more", found=str(value))
    found = CaseStore(arguments.data).case_ids(arguments.split)
    if not found:
        raise InputError(
            f"the dataset has no {arguments.split} cases",
            expected="at least one",
            found="none",
            todo="choose another --split, or prepare more patients",
        )
    return found[: arguments.cases]


def jobs_of(
    variants: list[Variant],
    case_ids: list[str],
    arguments: argparse.Namespace,
    out: Path,
    *,
    metrics: str = "",
) -> list[Job]:
    """Every case by every variant, in turn; one lesion head, the judge's or the first model's, measures all."""
    from clinfuse_platform.evaluate import Job
    from clinfuse_platform.provenance import code_hash, data_hash

    heads = [(variant.model, variant.model_hash) for variant in variants if variant.model]
    if arguments.judge:
        folder, model_hash = model_of(arguments.judge, arguments.storage)
        heads.insert(0, (str(folder), model_hash))
    head, head_hash = heads[0] if heads else ("", "")
    metrics = metrics or arguments.metrics
    context = [code_hash(), data_hash(arguments.data), str(arguments.slices), metrics]
    context.append(head_hash)
    base = Job(variant=variants[0], case_id="", part="", metrics=metrics, slices=arguments.slices)
    keys = [variant.key(*context) for variant in variants]
    jobs = []
    for case_id in case_ids:
        for variant, key in zip(variants, keys, strict=True):
            stem = f"{key}-{case_id}"
            pictures = out.resolve() / "images"
            jobs.append(
                replace(
                    base,
                    variant=variant,
                    case_id=case_id,
                    part=str(out.resolve() / "parts" / f"{stem}.parquet"),
                    picture=str(pictures / f"{stem}.npz") if variant.model else "",
                    slice_picture=str(pictures / f"{stem}.png"),
                    head=head,
                )
            )
    return jobs


EVALUATE = Verb(
    name="evaluate",
    help="Measure models and baselines side by side: Parquet, Markdown and an HTML page.",
    add_arguments=add_arguments,
    run=run,
    needs_ray=True,
    check=check_asked,
)

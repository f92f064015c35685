"""`clinfuse evaluate`: models and baselines side by side on a split, as Parquet, Markdown and a page to read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse import RESEARCH_USE
from clinfuse.errors import ConfigError, InputError
from clinfuse.verbs import Verb

if TYPE_CHECKING:
    from clinfuse.presets import Preset
    from clinfuse_platform.evaluate import Job
    from clinfuse_platform.variants import Variant

ALWAYS = ("mean", "max", "mri", "ct", "hard_roi", "prior")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse evaluate`."""
    parser.add_argument(
        "methods", nargs="+", metavar="MODEL|METHOD", help="model folders, runs, or baselines"
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


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What evaluate and ablate share: data, cases, amount of work, where results go."""
    parser.add_argument("--data", required=True, metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="(%(default)s)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases of the split")
    parser.add_argument("--slices", type=int, metavar="N", help="only N axial slices about the lesion")
    parser.add_argument("--metrics", choices=("roi", "all"), default="roi", help="(%(default)s)")
    parser.add_argument("--out", metavar="DIR", help="where results go; the same folder goes on")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where runs are kept (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and warps (%(default)s)")
    parser.add_argument("--actors", type=int, default=0, help="cases at once (default: GPUs, else cores)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate every method on every case of the split; `lost` counts cases on which a method failed."""
    from clinfuse.console import say
    from clinfuse_platform.evaluate import failed_cases, run_jobs
    from clinfuse_platform.evaluate_report import write_evaluation

    out = Path(arguments.out or "evaluation")
    variants = methods_of(arguments)
    case_ids = cases_of(arguments)
    jobs = jobs_of(variants, case_ids, arguments, out)
    say(f"  {len(variants)} methods on {len(case_ids)} cases")
    rows = run_jobs(jobs, arguments.data, actors=arguments.actors)
    files = write_evaluation(rows, out, arguments.data, jobs)
    return {
        "result": files["report"],
        **{name: path for name, path in files.items() if name != "report"},
        "methods": [variant.label for variant in variants],
        "cases": len(case_ids),
        "lost": failed_cases(rows),
        "research_use": RESEARCH_USE,
    }


def methods_of(arguments: argparse.Namespace) -> list[Variant]:
    """The asked methods as variants, models first, then baselines (the trivial ones always, unless --bare)."""
    from clinfuse.baselines import BASELINES
    from clinfuse_platform.variants import Variant

    names = list(dict.fromkeys([*arguments.methods, *(() if arguments.bare else ALWAYS)]))
    models = [name for name in names if name not in BASELINES]
    variants = [_model_variant(name, arguments) for name in models]
    preset = preset_of(arguments.preset, variants[0].model if variants else "").as_dict()
    baselines = [name for name in names if name in BASELINES]
    for name in baselines:
        label, full, content = baseline_of(name)
        variants.append(
            Variant(label=label, baseline=full, model_hash=content, preset=preset, seed=arguments.seed)
        )
    return uniquely_labelled(variants)


def baseline_of(name: str) -> tuple[str, str, str]:
    """Label, name and content hash of a baseline; a folder's path is made absolute and kept out of the label.

    Args:
        name: of a method, or NAME=FOLDER, or folder:FOLDER.

    Raises:
        InputError: the folder does not exist.
    """
    import hashlib

    from clinfuse.baselines.registry import folder_of, label_of

    folder, label = folder_of(name), label_of(name)
    if folder is None:
        return name, name, ""
    if not folder.is_dir():
        raise InputError(f"method {label}: no such folder", expected="NAME=FOLDER with fused images in it")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    told = [f"{f.relative_to(folder)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    content = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return label, f"{label}={folder.resolve()}", content


def _model_variant(name: str, arguments: argparse.Namespace) -> Variant:
    from clinfuse_platform.variants import Variant

    folder, model_hash = model_of(name, arguments.storage)
    return Variant(
        label=folder.name,
        model=str(folder),
        model_hash=model_hash,
        preset=preset_of(arguments.preset, str(folder)).as_dict(),
        steps=arguments.steps if _is_teacher(folder) else None,
        members=arguments.members,
        samples=arguments.samples,
        jitters=arguments.jitters,
        seed=arguments.seed,
    )


def model_of(name: str, storage: str) -> tuple[Path, str]:
    """The model folder meant by the name, absolute, and the hash of its weights and calibration.

    Raises:
        InputError: neither a model nor a baseline; the message lists both.
    """
    import hashlib
    import json

    from clinfuse.baselines import BASELINES
    from clinfuse_platform.runs import find_model

    try:
        folder = find_model(name, storage).resolve()
    except InputError as error:
        raise InputError(
            "neither a model nor a baseline",
            expected=f"{error.expected}; or a baseline: {', '.join(BASELINES)}",
            found=error.found,
            todo=error.todo,
        ) from error
    weights = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["model_hash"]
    calibration = folder / "calibration.json"
    text = weights + (calibration.read_text(encoding="utf-8") if calibration.is_file() else "")
    return folder, hashlib.sha256(text.encode()).hexdigest()[:16]


def preset_of(name: str, model: str) -> Preset:
    """The preset of that name: the model folder's own table first, else the built-in one."""
    from clinfuse.presets import find_preset, load_presets

    table = Path(model) / "presets.yaml" if model else None
    return find_preset(load_presets(table if table is not None and table.is_file() else None), name)


def cases_of(arguments: argparse.Namespace) -> list[str]:
    """Ids of the split's cases, as many as asked.

    Raises:
        InputError: the split is empty. ConfigError: --cases or --slices below 1.
    """
    from clinfuse_prep.store import CaseStore

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
    variants: list[Variant], case_ids: list[str], arguments: argparse.Namespace, out: Path
) -> list[Job]:
    """Every variant on every case, models first; the first model's lesion head measures all methods alike."""
    from clinfuse_platform.evaluate import Job
    from clinfuse_platform.provenance import data_hash

    heads = [variant for variant in variants if variant.model]
    head = heads[0] if heads else None
    context = [data_hash(arguments.data), str(arguments.slices), arguments.metrics]
    context.append(head.model_hash if head else "")
    jobs = []
    for variant in variants:
        key = variant.key(*context)
        for case_id in case_ids:
            jobs.append(
                Job(
                    variant=variant,
                    case_id=case_id,
                    part=str(out.resolve() / "parts" / f"{key}-{case_id}.parquet"),
                    picture=str(out.resolve() / "images" / f"{key}-{case_id}.npz") if variant.model else "",
                    head=head.model if head else "",
                    metrics=arguments.metrics,
                    slices=arguments.slices,
                )
            )
    return jobs


def uniquely_labelled(variants: list[Variant]) -> list[Variant]:
    """Model folders are often all called "model": labels that clash get the run's name before them."""
    from dataclasses import replace

    labels = [variant.label for variant in variants]
    return [
        replace(variant, label=f"{Path(variant.model).parent.name}/{variant.label}")
        if variant.model and labels.count(variant.label) > 1
        else variant
        for variant in variants
    ]


def _is_teacher(folder: Path) -> bool:
    import json

    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["kind"] == "teacher"


EVALUATE = Verb(
    name="evaluate",
    help="Measure models and baselines side by side: Parquet, Markdown and an HTML page.",
    add_arguments=add_arguments,
    run=run,
    needs_ray=True,
)

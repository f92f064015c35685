"""The methods of an evaluation: models, baselines and folders of results, each as a variant with its settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clinfuse.errors import InputError

if TYPE_CHECKING:
    from clinfuse.presets import Preset
    from clinfuse_platform.variants import Variant


def methods_of(arguments: argparse.Namespace) -> list[Variant]:
    """The asked methods as variants, models first, then baselines (the trivial ones always, unless --bare)."""
    from clinfuse.baselines import BASELINES, TRIVIAL
    from clinfuse_platform.variants import Variant

    asked = expanded(arguments.methods, arguments.storage)
    names = list(dict.fromkeys([*asked, *(() if arguments.bare else TRIVIAL)]))
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


def expanded(names: list[str], storage: str) -> list[str]:
    """The names with every folder of `clinfuse train-baseline` (a path, or RUN/baselines) replaced by its methods."""
    from clinfuse_platform.baseline_plan import trained_kinds

    found: list[str] = []
    for name in names:
        kinds = trained_kinds(Path(name)) or trained_kinds(Path(storage) / name)
        found += [f"{kind}={folder}" for kind, folder in kinds.items()] or [name]
    return found


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
    """The model folder meant by the name, absolute, and the hash of what changes its answers.

    Raises:
        InputError: neither a model nor a baseline; the message lists both.
    """
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
    return folder, json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["model_hash"]


def preset_of(name: str, model: str) -> Preset:
    """The preset of that name: the model folder's own table first, else the built-in one."""
    from clinfuse.presets import find_preset, load_presets

    table = Path(model) / "presets.yaml" if model else None
    return find_preset(load_presets(table if table is not None and table.is_file() else None), name)


def uniquely_labelled(variants: list[Variant]) -> list[Variant]:
    """Model folders are often all called "model": labels that clash get the run's name before them, else a number."""
    from dataclasses import replace

    labels = [variant.label for variant in variants]
    named = [
        replace(variant, label=f"{Path(variant.model).parent.name}/{variant.label}")
        if variant.model and labels.count(variant.label) > 1
        else variant
        for variant in variants
    ]
    seen: dict[str, int] = {}
    unique = []
    for variant in named:
        count = seen[variant.label] = seen.get(variant.label, 0) + 1
        unique.append(variant if count == 1 else replace(variant, label=f"{variant.label} ({count})"))
    return unique


def _is_teacher(folder: Path) -> bool:
    import json

    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["kind"] == "teacher"

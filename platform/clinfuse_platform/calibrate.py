"""Fits a model's error head on training cases and its calibration on validation cases; writes both in one step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from clinfuse import RESEARCH_USE
from clinfuse.errors import ConfigError, InputError

if TYPE_CHECKING:
    import argparse

    from clinfuse_prep.store import CaseStore

    from clinfuse.method.calibration import Calibration
    from clinfuse_platform.observer import Observed

LEARN_CASES = 144
"""At most so many training cases teach the error head."""


def check_asked(arguments: argparse.Namespace) -> None:
    """Refuse what `calibrate_model` cannot use, before a session starts.

    Args:
        arguments: of `clinfuse calibrate`.

    Raises:
        ConfigError: no such preset, impossible looks, slices, steps or seed, or the model folder cannot be written.
        InputError: no such model or dataset, or no training or no validation case.
    """
    from clinfuse_prep.store import CaseStore

    from clinfuse.folders import check_writable
    from clinfuse.method.diffusion import make_scheduler
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_platform.runs import local_copy, model_folder

    for name, least in (("looks", 1), ("slices", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is too small", expected=f"{least} or more", found=str(value))
    store = CaseStore(arguments.data)
    store.manifest_bytes()  # without one the dataset is not whole
    for split in ("train", "val"):
        _cases(store, split)
    folder = model_folder(arguments.model, arguments.storage)
    if folder.protocol in ("", "file"):
        check_writable(str(folder.parent), "MODEL")
    pipeline = FusionPipeline.from_pretrained(local_copy(folder), calibrated=False)
    pipeline.resolve_preset(arguments.preset)
    if arguments.steps is not None:
        make_scheduler(pipeline.diffusion, arguments.steps)


def calibrate_model(
    model: str,
    data: str,
    preset: str = "balanced",
    *,
    looks: int,
    storage: str = "runs",
    slices: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit error head and calibration of a model folder on the dataset's training and validation cases.

    Args:
        model: model folder or run, see clinfuse_platform.runs.model_folder.
        data: the dataset; cases of split "test" are never read.
        preset: used for all of them.
        looks: how often the error head learns from each training case; what that takes grows with it.
        storage: where runs are kept.
        slices: axial slab of each validation case, or None for the whole.
        steps: reverse steps, see FusionPipeline.__call__.
        seed: of the sampling noise, and of the voxels drawn.

    Returns:
        The verb's result: model folder, cases, voxels, factors.

    Raises:
        InputError: no such model, or no training or no validation case.
    """
    from clinfuse_prep.store import CaseStore

    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training.error_fit import fit_error_head
    from clinfuse_platform.observer import Observers, Setting, seen
    from clinfuse_platform.runs import local_copy, model_folder, put_model

    folder, store = model_folder(model, storage), CaseStore(data)
    teachers, to_calibrate = _learning_cases(_cases(store, "train")), _cases(store, "val")
    pipeline = FusionPipeline.from_pretrained(local_copy(folder), calibrated=False)
    pipeline.resolve_preset(preset)
    setting = Setting(model=str(folder), data=data, preset=preset, slices=slices, steps=steps, seed=seed)
    with closing(Observers(setting, max(len(teachers), len(to_calibrate)))) as observers:
        error_head = pipeline.error_head = fit_error_head(observers.learn(seen(teachers, looks)), seed=seed)
        calibration = pipeline.calibration = fit(observers.observe(to_calibrate, error_head), seed)
    put_model(pipeline.save_pretrained, folder)
    return {
        "result": folder,
        "calibration": folder / "calibration.json",
        "error_head_cases": len(teachers),
        "cases": len(to_calibrate),
        "coverage": calibration.coverage,
        "tolerance": calibration.tolerance,
        "voxels": dict(calibration.voxels),
        "factors": dict(calibration.factors),
        "notes": list(calibration.notes),
        "research_use": RESEARCH_USE,
    }


def fit(observed: Sequence[Observed], seed: int) -> Calibration:
    """The calibration of these observations; a patient counts once, however many cases there are of them."""
    from clinfuse.method.calibration import fit_calibration

    return fit_calibration(
        [one.std for one in observed],
        [one.error for one in observed],
        [one.rois for one in observed],
        seed=seed,
        case_ids=[one.patient for one in observed],
        companions=[one.companion for one in observed],
    )


def _cases(store: CaseStore, split: str) -> list[str]:
    case_ids = store.case_ids(split)
    if not case_ids:
        raise InputError(
            f"the dataset has no cases of split {split}",
            expected="the error head learns from split train, the calibration from split val",
            found="none",
            todo="prepare more patients, or another --split share",
        )
    return case_ids


def _learning_cases(case_ids: Sequence[str]) -> list[str]:
    """At most `LEARN_CASES`, spread over all."""
    places = np.unique(np.linspace(0, len(case_ids) - 1, min(LEARN_CASES, len(case_ids))).round().astype(int))
    return [case_ids[place] for place in places]

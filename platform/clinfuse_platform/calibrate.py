"""Fits a model's calibration on validation cases and writes it into the model folder in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse.errors import InputError
from clinfuse.method.variance_weights import Variances, fit_weights, weighted_std

if TYPE_CHECKING:
    from clinfuse.method.calibration import Calibration
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.presets import Preset


def calibrate_model(
    model: str,
    data: str,
    preset: str = "balanced",
    *,
    storage: str = "runs",
    slices: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate a model folder on the dataset's validation cases.

    Args:
        model: model folder or run, see clinfuse_platform.runs.model_folder.
        data: the dataset; only cases of split "val" are read.
        preset: used for all of them.
        storage: where runs are kept.
        slices: axial slab of each case, or None for the whole.
        steps: reverse steps, see FusionPipeline.__call__.
        seed: of the sampling noise.

    Returns:
        The verb's result: model folder, cases, voxels, factors.

    Raises:
        InputError: no such model, or no validation case.
    """
    import torch
    from clinfuse_prep.store import CaseStore

    from clinfuse.console import progress
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_platform.runs import local_copy, model_folder, put_model
    from clinfuse_platform.variants import slab

    folder, store = model_folder(model, storage), CaseStore(data)
    case_ids = store.case_ids("val")
    if not case_ids:
        raise InputError(
            "the dataset has no validation cases",
            expected="at least one case of split val",
            found="none",
            todo="prepare more patients, or another --split share",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = FusionPipeline.from_pretrained(local_copy(folder), device=device, calibrated=False)
    chosen = pipeline.resolve_preset(preset)
    cases = (slab(store.read(case_id), slices) for case_id in case_ids)
    observed = [
        observe(pipeline, case, chosen, steps=steps, seed=seed)
        for case in progress(cases, total=len(case_ids), label="validation cases")
    ]
    calibration = fit(observed, seed)
    pipeline.calibration = calibration
    put_model(pipeline.save_pretrained, folder)
    return {
        "result": folder,
        "calibration": folder / "calibration.json",
        "cases": len(case_ids),
        "coverage": calibration.coverage,
        "tolerance": calibration.tolerance,
        "voxels": dict(calibration.voxels),
        "factors": dict(calibration.factors),
        "notes": list(calibration.notes),
        "research_use": RESEARCH_USE,
    }


def observe(
    pipeline: FusionPipeline, case: Case, preset: Preset, *, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Predicted variances and true error of one case at the voxels where its reference is one.

    Returns:
        variances: (N,) each, image units²; error: (N,) in image units; rois: masks (N,)
        of brain, bone, lesion; patient: pseudonym.
    """
    from clinfuse.evaluation.uncertain import error_and_regions

    result = pipeline(case, preset, steps=steps, seed=seed)
    error, regions = error_and_regions(case, result.fused, preset)
    where = regions["head"]
    rois = {name: np.asarray(mask)[where] > 0 for name, mask in case.masks.items()}
    patient = str(case.attrs.get("patient", case.case_id))
    variances = Variances(*(part[where] for part in result.variances))
    return {"variances": variances, "error": error[where], "rois": rois, "patient": patient}


def fit(observed: Sequence[dict[str, Any]], seed: int) -> Calibration:
    """The calibration of these observations; a patient counts once, however many cases there are of them."""
    from clinfuse.method.calibration import fit_calibration

    names = ("variances", "error", "rois", "patient")
    variances, error, rois, patients = ([one[name] for one in observed] for name in names)
    weights = fit_weights(variances, error, rois, patients, seed)
    std = [weighted_std(parts, masks, weights) for parts, masks in zip(variances, rois, strict=True)]
    return fit_calibration(std, error, rois, seed=seed, case_ids=patients, weights=weights)

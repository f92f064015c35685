"""Judging checkpoints on the validation cases beside the training, which goes on meanwhile (a task without a CPU of
its own). The verdict orders checkpoints, so that the best are kept, and joins the run's metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from clinfuse_platform.position import Position
from clinfuse_platform.runs import find_model
from clinfuse_platform.storage import storage_path, write_atomic

if TYPE_CHECKING:
    from ray.train import Checkpoint
    from torch import Tensor, nn

    from clinfuse.case import Case
    from clinfuse.training import TrainConfig

SCORE, NOT_JUDGED = "val_score", -1.0
FOLDER = "validation"
CASES, SLICES, STEPS, PRESET = 8, 16, 4, "balanced"
TIMEOUT_S = 1800.0


def validate_checkpoint(
    checkpoint: Checkpoint, *, config: dict[str, Any], data: str, teacher: str, notes: str
) -> dict[str, float]:
    """Ray Train's validation function: ROI metrics of the network a checkpoint has under way or just done.

    Args:
        checkpoint: see clinfuse_platform.position.
        config: TrainConfig.to_dict(). data: the dataset; its cases of split "val" are read, at most 8, a slab of 16
            slices of each. teacher: model folder with the lesion head, or "" where the checkpoint has its own.
        notes: folder for the verdicts, a JSON file each.

    Returns:
        val_… metrics (those without a value left out) and val_score: phases done before, plus the mean of the
        similarities and overlaps, so that a later phase's checkpoints rank before an earlier one's.
    """
    from clinfuse_prep.store import CaseStore

    from clinfuse.training import TrainConfig
    from clinfuse_platform.variants import slab

    with checkpoint.as_directory() as text:
        folder = Path(text)
        position = Position.load(folder)
        phase, step, weights = position.under_way(folder)
        store = CaseStore(data)
        cases = [slab(store.read(case_id), SLICES) for case_id in store.case_ids("val")[:CASES]]
        found = judge(TrainConfig.from_dict(config), phase, weights, cases, folder, teacher)
    earlier = len([name for name in position.done if name != phase])
    score = earlier + sum(found.values()) / max(1, len(found))
    verdict = {f"val_{name}": value for name, value in found.items()} | {SCORE: score}
    note = {"phase": phase, "step": step, **verdict}
    write_atomic(storage_path(notes) / f"{phase}-{step:09d}.json", json.dumps(note))
    return verdict


def judge(
    config: TrainConfig,
    phase: str,
    weights: Mapping[str, Tensor],
    cases: list[Case],
    folder: Path,
    teacher: str,
) -> dict[str, float]:
    """Means over the cases: lesion_dice of a lesion head; brain_ssim, bone_ssim and lesion_dice of a denoiser."""
    from clinfuse.training import build_denoiser, build_lesion_head

    head = build_lesion_head(config)
    if phase == "lesion_head":
        head.load_state_dict(dict(weights))
        return _means([_head_scores(head.eval(), case) for case in cases])
    denoiser = build_denoiser(config)
    denoiser.load_state_dict(dict(weights))
    return _means(_fusion_scores(config, denoiser, _lesion_head(config, folder, teacher), cases))


def _head_scores(head: nn.Module, case: Case) -> dict[str, float]:
    from clinfuse.evaluation.lesions import segment_lesion
    from clinfuse.metrics.lesion import lesion_scores

    if not case.has_lesion:
        return {}
    found = segment_lesion(head, case.anatomy, case.spacing)
    return {"lesion_dice": lesion_scores(case.lesion, found, case.spacing).dice}


def _fusion_scores(
    config: TrainConfig, denoiser: Any, head: Any | None, cases: list[Case]
) -> list[dict[str, float]]:
    from clinfuse.evaluation.objectives import objectives
    from clinfuse.pipeline import FusionPipeline

    pipeline = FusionPipeline(members=[denoiser.eval()], lesion_head=head, diffusion=config.diffusion)
    preset = pipeline.resolve_preset(PRESET)
    rows = []
    for case in cases:
        fused = pipeline(case, preset, steps=STEPS, guided=False).fused
        known = objectives(case, fused, head, preset)
        rows.append({name: known[name] for name in ("brain_ssim", "bone_ssim", "lesion_dice")})
    return rows


def _lesion_head(config: TrainConfig, folder: Path, teacher: str) -> Any | None:
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import build_lesion_head
    from clinfuse_platform.position import load_weights

    if teacher:
        return FusionPipeline.from_pretrained(find_model(teacher)).lesion_head
    if not (folder / "lesion_head.safetensors").exists():
        return None
    head = build_lesion_head(config)
    load_weights(head, folder, "lesion_head")
    return head.freeze()


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    known = {name: [row[name] for row in rows if math.isfinite(row.get(name, math.nan))] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def with_verdicts(rows: list[dict[str, Any]], notes: UPath) -> list[dict[str, Any]]:
    """The loss history with each verdict in the row of its step (the first at or after it)."""
    joined = [dict(row) for row in rows]
    for file in sorted(notes.iterdir()) if notes.exists() else ():
        verdict = json.loads(file.read_text(encoding="utf-8"))
        phase, step = verdict.pop("phase"), verdict.pop("step")
        row = next((one for one in joined if one["phase"] == phase and one["step"] >= step), None)
        if row is not None:
            row.update(verdict)
    return joined


def validation_config(settings: Mapping[str, Any], experiment: UPath) -> Any:
    """How Ray Train judges checkpoints beside the training, or None where none are to be judged."""
    from ray.train import ValidationConfig, ValidationTaskConfig

    if not settings["config"].get("validations"):
        return None
    told = {
        "config": settings["config"],
        "data": settings["data"],
        "teacher": settings.get("teacher", ""),
        "notes": str(experiment / FOLDER),
    }
    judge_it: Any = validate_checkpoint
    task = ValidationTaskConfig(fn_kwargs=told, timeout_s=TIMEOUT_S)
    return ValidationConfig(
        fn=judge_it, task_config=task, ray_remote_kwargs={"num_cpus": 0, "max_retries": 1}
    )


def best_checkpoints(result: Any, name: str) -> list[dict[str, Any]]:
    """The checkpoints that stay, best first: folder in the run, and verdict where there is one."""
    kept = [(checkpoint, metrics) for checkpoint, metrics in result.best_checkpoints or ()]
    kept.sort(key=lambda pair: -float(pair[1].get(SCORE, NOT_JUDGED)))
    return [
        {
            "checkpoint": f"{name}/{Path(checkpoint.path).name}",
            **{
                key: value for key, value in metrics.items() if key.startswith("val_") and value != NOT_JUDGED
            },
        }
        for checkpoint, metrics in kept
    ]

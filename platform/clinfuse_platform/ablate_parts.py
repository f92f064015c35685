"""Ablations of the training: small models that differ in one part of the method, trained alike on the same cases; and
students of fewer steps, distilled alike from one teacher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clinfuse_platform.ablations import MISREGISTERED_MM, Ablation
from clinfuse_platform.evaluate_methods import model_of
from clinfuse_platform.variants import Variant
from clinfuse_platform.verb_table import run_verb

TEACHER_STEPS = 50
STUDENT_STEPS = (4, 2, 1)
PARTS: dict[str, tuple[str, ...]] = {
    "whole method": (),
    "no L_ROI in training (Eq. 3)": ("roi_weight=0",),
    "border term: generalized surface loss": ("border=surface",),
    "no log-variance likelihood": ("variance_weight=0",),
    "no seam penalty": ("seam_weight=0",),
    "target: the fusion prior, not refined": ("refine_steps=0",),
    "CT findings in brain not painted in": ("denoiser.finding_grey=0",),
    "no encoders": ("denoiser.encoder_channels=0",),
    "free denoiser, x₀-prediction": ("denoiser.head=x0",),
    "free denoiser, ε-prediction": ("denoiser.head=epsilon",),
    "free denoiser, v-prediction": ("denoiser.head=v",),
    "no residual": ("denoiser.residual_scale=0",),
    "two Haar levels": ("denoiser.levels=2",),
    "no jitter in training": ("jitter_share=0",),
    "no contrast augmentation": ("contrast_share=0",),
    "no simulated SPECT and PET": ("tracer_share=0",),
}
"""What is left out, and the settings of the recipe that leave it out."""


def retrained(
    base: Variant, recipe: str, settings: Sequence[str], data: str, storage: Path
) -> list[Ablation]:
    """Train every model of PARTS and ask two questions of them: on pairs as they are stored, and misregistered.

    A model whose run is finished is not trained again. All are sampled unguided, so that what is seen is the
    training's.

    Args:
        base: gives preset, steps and seed.
        recipe, settings: of all of them, as for `clinfuse train`; the part's own settings come last.
        data: the dataset; its training cases.
        storage: where their runs are kept.
    """
    models: dict[str, Variant] = {}
    for number, (label, changes) in enumerate(PARTS.items()):
        words = [word for change in (*settings, *changes) for word in ("--set", change)]
        run = f"part-{number}"
        run_verb("train", [data, "--recipe", recipe, "--run", run, "--storage", str(storage), *words])
        folder, model_hash = model_of(run, str(storage))
        models[label] = replace(base, model=str(folder), model_hash=model_hash, guided=False)
    trained_apart = {
        label: replace(model, jitter_mm=MISREGISTERED_MM, align=False) for label, model in models.items()
    }
    return [
        Ablation(
            name="parts",
            question=f"What does each part of the method bring, in models trained alike by {recipe}?",
            ordered=False,
            variants=lambda _: models,
        ),
        Ablation(
            name="parts misregistered",
            question=f"The same under a misregistration of {MISREGISTERED_MM:g} mm, not undone before sampling.",
            ordered=False,
            variants=lambda _: trained_apart,
        ),
    ]


def distilled(base: Variant, run: str, settings: Sequence[str], storage: str) -> Ablation:
    """Distil students of 1, 2 and 4 steps of a run and set them beside their guided teacher of 50 steps.

    They are trained by as many workers as the teacher, since more workers mean a larger batch. Each is also shown with
    guidance of its own, which costs it gradients. A student that is there already is not trained again.

    Args:
        base: gives preset and seed.
        run: the finished training run.
        settings: as for `clinfuse distill`.
        storage: where runs are kept.
    """
    teacher, teacher_hash = model_of(run, storage)
    models = {
        f"teacher, {TEACHER_STEPS} steps": replace(
            base, model=str(teacher), model_hash=teacher_hash, steps=TEACHER_STEPS, guided=True
        )
    }
    words = trained_like(teacher, settings)
    for steps in STUDENT_STEPS:
        name = f"student-{steps}"
        run_verb("distill", [run, "--steps", str(steps), "--name", name, "--storage", storage, *words])
        folder, model_hash = model_of(f"{run}/{name}", storage)
        label = f"student, {steps} step{'s' if steps > 1 else ''}"
        models[label] = replace(base, model=str(folder), model_hash=model_hash, steps=None, guided=None)
        models[f"{label}, guided"] = replace(models[label], guided=True)
    return Ablation(
        name="distillation",
        question="What does a student of few steps lose against its guided teacher (Section 3.5), and how fast is it?",
        ordered=False,
        variants=lambda _: models,
    )


def trained_like(teacher: Path, settings: Sequence[str]) -> list[str]:
    """Words for `clinfuse distill`: the settings, and as many workers as trained the teacher in this model folder."""
    facts = json.loads((teacher / "metadata.json").read_text(encoding="utf-8"))["facts"]
    words = [word for change in settings for word in ("--set", change)]
    return [*words, "--workers", str(facts.get("workers", 1))]

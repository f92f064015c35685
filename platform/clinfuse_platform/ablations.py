"""Ablations as variants of one model: what is changed, in which levels, everything else equal.

The first six are the proposal's; the others ask the same of parts that it describes and does not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse.presets import Preset, load_presets
from clinfuse_platform.variants import Variant

STEPS = (1, 2, 4, 10, 20, 50, 100)
STARTS = (0.0, 0.5, 0.9)
JITTER_MM = (0.0, 1.0, 2.0, 4.0)
MISREGISTERED_MM = 2.0
WEIGHTS = {
    "1:1:1": (1.0, 1.0, 1.0),
    "3:1:1": (3.0, 1.0, 1.0),
    "1:3:1": (1.0, 3.0, 1.0),
    "1:1:3": (1.0, 1.0, 3.0),
    "0:1:1": (0.0, 1.0, 1.0),
    "1:0:1": (1.0, 0.0, 1.0),
    "1:1:0": (1.0, 1.0, 0.0),
}


LESION_TERMS = {
    "all three": (1.0, 1.0, 0.5),
    "Dice alone": (1.0, 0.0, 0.0),
    "NSD alone": (0.0, 1.0, 0.0),
    "HD95 alone": (0.0, 0.0, 1.0),
}
BORDERS = {"soft HD95": "hd95", "generalized surface loss": "surface"}
ENSEMBLES: dict[str, dict[str, Any]] = {
    "one member, one sample": {"members": 1},
    "all members": {},
    "4 samples": {"samples": 4},
    "4 jitters": {"jitters": 4},
}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question put to the model.

    Attributes:
        name: on the command line and in the table.
        question: one sentence for the page.
        ordered: whether levels are numbers along an axis.
        variants: the base variant → label of each level and its variant.
    """

    name: str
    question: str
    ordered: bool
    variants: Callable[[Variant], Mapping[str, Variant]]


def _with_preset(base: Variant, **changes: Any) -> Variant:
    values = dict(base.preset)
    preset = Preset(name=str(values.pop("name")), **values).changed(**changes)
    return replace(base, preset=preset.as_dict())


def _weights(base: Variant) -> dict[str, Variant]:
    return {
        label: _with_preset(base, alpha=alpha, beta=beta, gamma=gamma)
        for label, (alpha, beta, gamma) in WEIGHTS.items()
    }


def _lesion_terms(base: Variant) -> dict[str, Variant]:
    return {
        label: _with_preset(base, lambda_dice=dice, lambda_nsd=nsd, lambda_hd=hd)
        for label, (dice, nsd, hd) in LESION_TERMS.items()
    }


def _samplers(base: Variant) -> dict[str, Variant]:
    from clinfuse.method.diffusion import SAMPLERS

    return {name: replace(base, sampler=name) for name in SAMPLERS}


def _presets(base: Variant) -> dict[str, Variant]:
    return {name: replace(base, preset=preset.as_dict()) for name, preset in load_presets().items()}


ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            name="guidance",
            question="What does ROI and uncertainty guidance add (Eq. 1)?",
            ordered=False,
            variants=lambda base: {"off": replace(base, guided=False), "on": replace(base, guided=True)},
        ),
        Ablation(
            name="weights",
            question="How do the region weights α:β:γ move the result (Eq. 2)?",
            ordered=False,
            variants=_weights,
        ),
        Ablation(
            name="terms",
            question="What do the lesion terms λ₁ Dice, λ₂ NSD and λ₃ HD95 do, alone and together (Eq. 2)?",
            ordered=False,
            variants=_lesion_terms,
        ),
        Ablation(
            name="border",
            question="Which L_HD95 is the better border term, the soft HD95 or its alternative (Eq. 2)?",
            ordered=False,
            variants=lambda base: {
                label: replace(base, guided=True, border=border) for label, border in BORDERS.items()
            },
        ),
        Ablation(
            name="presets",
            question="How do the clinical presets differ (Section 3.2)?",
            ordered=False,
            variants=_presets,
        ),
        Ablation(
            name="masks",
            question="What do automatic masks cost against the stored (curated or corrected) ones?",
            ordered=False,
            variants=lambda base: {"stored": base, "automatic": replace(base, masks="auto")},
        ),
        Ablation(
            name="modulation",
            question="What does modulating guidance by uncertainty add (Eq. 4)?",
            ordered=False,
            variants=lambda base: {"off (κ = 0)": _with_preset(base, kappa=0.0), "on": base},
        ),
        Ablation(
            name="steps",
            question="How many reverse steps are needed?",
            ordered=True,
            variants=lambda base: {str(steps): replace(base, steps=steps) for steps in STEPS},
        ),
        Ablation(
            name="sampler",
            question="Which formula of the reverse step g_θ is best in as many steps (Eq. 1)?",
            ordered=False,
            variants=_samplers,
        ),
        Ablation(
            name="jitter",
            question="What does misregistration of so many millimetres cost?",
            ordered=True,
            variants=lambda base: {f"{mm:g}": replace(base, jitter_mm=mm) for mm in JITTER_MM},
        ),
        Ablation(
            name="alignment",
            question=f"What does undoing a misregistration of {MISREGISTERED_MM:g} mm before sampling bring?",
            ordered=False,
            variants=lambda base: {
                label: replace(base, jitter_mm=MISREGISTERED_MM, align=align)
                for label, align in (("off", False), ("on", True))
            },
        ),
        Ablation(
            name="gradient",
            question="Exact gradient through the denoiser or cheap one at its estimate: which guides better (Eq. 1)?",
            ordered=False,
            variants=lambda base: {
                kind: replace(base, guided=True, gradient=kind) for kind in ("cheap", "exact")
            },
        ),
        Ablation(
            name="start",
            question="From which share of the reverse steps on is guidance worth its gradients?",
            ordered=True,
            variants=lambda base: {f"{start:g}": replace(base, guided=True, start=start) for start in STARTS},
        ),
        Ablation(
            name="finish",
            question="What do the descent steps that end the sampling add, at ROI borders above all?",
            ordered=False,
            variants=lambda base: {"off": replace(base, finish=0), "on": base},
        ),
        Ablation(
            name="uncertainty",
            question="What does the uncertainty term η_u of Eq. 1 add?",
            ordered=False,
            variants=lambda base: {"off (η_u = 0)": _with_preset(base, eta_u=0.0), "on": base},
        ),
        Ablation(
            name="ensemble",
            question="What do members, samples and a jitter ensemble add to image and uncertainty (Section 3.4)?",
            ordered=False,
            variants=lambda base: {label: replace(base, **each) for label, each in ENSEMBLES.items()},
        ),
        Ablation(
            name="error_head",
            question="What do the error head and its calibration add to the total variance (Section 3.4)?",
            ordered=False,
            variants=lambda base: {
                "off, uncalibrated": replace(base, error_head=False),
                "on, uncalibrated": replace(base, calibrated=False),
                "on, calibrated": base,
            },
        ),
    )
}


def chosen(names: Sequence[str], *, error_head: bool) -> list[Ablation]:
    """The ablations of those names, or all that the model can be asked.

    Args:
        names: on the command line.
        error_head: whether the model has one; without, all levels of that ablation would be the same.

    Raises:
        ConfigError: an unknown name, or the error head's of a model that has none.
    """
    unknown = [name for name in names if name not in ABLATIONS]
    if unknown:
        raise ConfigError("no such ablation", expected=", ".join(ABLATIONS), found=", ".join(unknown))
    if "error_head" in names and not error_head:
        raise ConfigError(
            "the ablation error_head has nothing to leave out",
            expected="a calibrated model",
            found="one without an error head",
            todo="run clinfuse calibrate MODEL first, or ablate its calibrated ensemble",
        )
    return [ABLATIONS[name] for name in names or ABLATIONS if error_head or name != "error_head"]


def labelled(ablation: Ablation, base: Variant) -> list[Variant]:
    """The ablation's variants, labelled "name: level"."""
    return [
        replace(variant, label=f"{ablation.name}: {level}")
        for level, variant in ablation.variants(base).items()
    ]

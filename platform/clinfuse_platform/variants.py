"""A variant: one method with its settings, as it is applied to a case; what evaluate and ablate run side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline, FusionResult


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one line of the table comes about; JSON-able, so that it names its results.

    Attributes:
        label: the method's name in the table.
        model: model folder, or "" for a baseline.
        model_hash: of all in it that changes an answer.
        baseline: name in clinfuse.baselines.BASELINES, or "".
        preset: Preset.as_dict().
        steps, guided, members, samples, jitters: see FusionPipeline.__call__.
        align: the same; pairs whose true alignment is not known stay as they are, for F is measured against them.
        error_head: False leaves it out, and with it the calibration that was fitted for it: doubt is then that of the
            total variance.
        calibrated: False leaves the calibration out.
        sampler: the formula of g_θ, in clinfuse.method.diffusion.SAMPLERS; "" is the model's own.
        gradient, start, border: of the guidance, see clinfuse.method.guidance.GuidanceConfig; "" is the model's own.
        finish: descent steps that end the sampling; None is as many as ever.
        masks: "stored", or "auto": brain and bone masks made anew from the images by clinfuse_prep.
        jitter_mm: the aligned companion warped by a rigid and elastic jitter of this amplitude before fusing; 0 is
            the aligned companion itself (the stored one where no other is known), None the case as it is stored.
        seed: of noise and warps.
    """

    label: str
    model: str = ""
    model_hash: str = ""
    baseline: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    guided: bool | None = None
    members: int | None = None
    samples: int = 1
    jitters: int = 0
    align: bool = True
    error_head: bool = True
    calibrated: bool = True
    sampler: str = ""
    gradient: str = ""
    start: float = 0.0
    border: str = "hd95"
    finish: int | None = None
    masks: str = "stored"
    jitter_mm: float | None = None
    seed: int = 0

    def key(self, *context: str) -> str:
        """Twelve hex digits that tell these settings, on this data, apart from all others; the label is no part."""
        settings = {name: value for name, value in asdict(self).items() if name != "label"}
        text = json.dumps([settings, *context], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def named_preset(self) -> Preset:
        """The preset as an object, checked anew."""
        values = dict(self.preset)
        return Preset(name=str(values.pop("name")), **values)

    def seen(self, case: Case) -> Case:
        """The case as this method gets it: masks and misregistration changed as asked; the reference stays aside."""
        if self.jitter_mm is not None:
            case = misregistered(case, self.jitter_mm, self.seed)
        return with_automatic_masks(case) if self.masks == "auto" else case

    def fuse(self, seen: Case, pipeline: FusionPipeline | None) -> tuple[FloatArray, FusionResult | None]:
        """Fuse a case as `seen` gave it: the image (D, H, W) in [0, 1], and for a model all that it says of it."""
        if pipeline is None:
            from clinfuse.baselines import BASELINES

            return BASELINES[self.baseline](seen, self.named_preset()), None
        from clinfuse.method.guidance import GuidanceConfig

        if not (self.error_head and self.calibrated):
            head = pipeline.error_head if self.error_head else None
            pipeline = replace(pipeline, error_head=head, calibration=None)
        if self.sampler:
            pipeline = replace(pipeline, diffusion=replace(pipeline.diffusion, sampler=self.sampler))
        if self.finish is not None:
            pipeline = replace(pipeline, finish=self.finish)
        judged = seen.aligned_companion is not None or self.jitter_mm is not None
        result = pipeline(
            seen,
            self.named_preset(),
            steps=self.steps,
            seed=self.seed,
            members=self.members,
            samples=self.samples,
            jitters=self.jitters,
            guided=self.guided,
            guidance=GuidanceConfig(
                gradient=self.gradient or pipeline.gradient, start=self.start, border=self.border
            ),
            align=self.align and judged,
        )
        return result.fused, result


def misregistered(case: Case, amplitude_mm: float, seed: int) -> Case:
    """The case with its companion `jittered`; its masks stay where they are true, whatever they were made from."""
    attrs = {name: value for name, value in case.attrs.items() if name != "alignment"}
    attrs["provenance"] = dict.fromkeys(case.masks, "kept")
    return replace(case, companion=jittered(case, amplitude_mm, seed), attrs=attrs)


def jittered(case: Case, amplitude_mm: float, seed: int) -> FloatArray:
    """The aligned companion (D, H, W) displaced by a drawn warp of about that many millimetres.

    Rotation takes part with one degree per millimetre, elastic displacement with half the amplitude; 0 mm
    changes nothing.
    """
    import torch

    from clinfuse.method.jitter import JitterConfig, apply, draw

    source = case.companion if case.aligned_companion is None else case.aligned_companion
    if amplitude_mm == 0:
        return source
    digest = hashlib.blake2b(f"{case.case_id} {seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    config = JitterConfig(translation_mm=amplitude_mm, rotation_deg=amplitude_mm, elastic_mm=amplitude_mm / 2)
    volume = torch.from_numpy(np.ascontiguousarray(source))[None, None]
    warped = apply(draw(config, generator, 3), volume, case.spacing)[0, 0].clamp(0, 1)
    return np.asarray(warped.numpy(), dtype=np.float32)


def with_automatic_masks(case: Case) -> Case:
    """The case with brain and bone masks made from its images alone, as clinfuse prep does where none is given.

    The companion is taken back to HU by its stored scaling; without one in HU only the brain mask is made anew. Masks
    made from the CT are named so in attrs["provenance"]: they lie where the CT does, and move with it (`aligned`).
    """
    from clinfuse_prep.masks.bone import bone_from_ct
    from clinfuse_prep.masks.brain import brain_from_ct
    from clinfuse_prep.masks.brain_mr import brain_classical

    scaling = dict(case.attrs.get("scaling", {})).get("companion", {})
    if scaling.get("unit") == "HU":
        hounsfield = case.companion * (scaling["high"] - scaling["low"]) + scaling["low"]
        bone, _ = bone_from_ct(hounsfield.astype(np.float32), case.spacing, grey8=False)
        brain = brain_from_ct(hounsfield.astype(np.float32), bone, case.spacing, grey8=False)
        made, source = {"brain": brain, "bone": bone}, "auto:ct"
    else:
        made, source = {"brain": brain_classical(case.anatomy, case.spacing)}, "auto:classical"
    provenance = {**case.attrs.get("provenance", {}), **dict.fromkeys(made, source)}
    masks: dict[str, Any] = {roi: np.asarray(mask, dtype=np.uint8) for roi, mask in made.items()}
    return replace(case, attrs={**case.attrs, "provenance": provenance}, **masks)


def slab(case: Case, slices: int | None) -> Case:
    """The axial slab of that many slices about the lesion's centre (else the brain's, else the volume's)."""
    depth = case.shape[0]
    if slices is None or slices >= depth:
        return case
    region = case.lesion if case.has_lesion else case.brain
    centre = int(np.argwhere(region)[:, 0].mean()) if region.any() else depth // 2
    start = min(max(0, centre - slices // 2), depth - slices)
    return case.slices(start, start + slices)

"""FusionPipeline: from a case to the fused image with its uncertainty; the one way to use a model.

Legend: D, H, W as in clinfuse.case. A 2D model treats the axial slices as its batch, a 3D model the whole volume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clinfuse.alignment import aligned
from clinfuse.case import Case, FloatArray
from clinfuse.combine import FusionResult, MemberSample, ModelFacts, combine_samples
from clinfuse.errors import ConfigError
from clinfuse.method.calibration import Calibration
from clinfuse.method.denoiser import Denoiser, Inputs, pad_to_multiple
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.guidance import GuidanceConfig, Guide
from clinfuse.method.jitter import JitterConfig, apply, draw
from clinfuse.method.lesion_head import LesionHead
from clinfuse.method.roi_loss import roi_reference
from clinfuse.method.sampler import sample
from clinfuse.method.uncertainty import registration_variance, saturating
from clinfuse.presets import Preset, find_preset, load_presets

SLICE_BATCH = 16
HEAD_LEVEL = 0.03
Progress = Callable[[int, int], None]

__all__ = ["FusionPipeline", "FusionResult", "MemberSample"]


@dataclass
class FusionPipeline:
    """Members, lesion head, presets and calibration of one model.

    Attributes:
        members: denoisers; one for a single model, K for an ensemble.
        lesion_head: frozen Ŝ, or None (then no lesion guidance).
        diffusion: noise schedule and sampler.
        kind: "teacher" (guided, many steps) or "student" (distilled, few steps, no gradients).
        student_steps: sampler steps of a student.
        presets: those that callers may name.
        calibration: map from predicted standard deviation to calibrated uncertainty, or None.
        metadata: model card facts (recipe, data, seeds), JSON-able.
        model_hash: of the weights; set by saving and loading.
    """

    members: list[Denoiser]
    lesion_head: LesionHead | None
    diffusion: DiffusionConfig
    kind: str = "teacher"
    student_steps: int = 4
    presets: dict[str, Preset] = field(default_factory=load_presets)
    calibration: Calibration | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    model_hash: str = "unsaved"

    def __post_init__(self) -> None:
        if self.kind not in ("teacher", "student") or not self.members:
            raise ConfigError("not a pipeline", expected="teacher or student with members", found=self.kind)
        for member in self.members:
            member.eval().requires_grad_(False)
        if self.lesion_head is not None:
            self.lesion_head.freeze()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> FusionPipeline:
        """Load a model folder; every file is checked against its recorded hash.

        Raises:
            ModelFolderError: missing, corrupted or foreign folder.
        """
        from clinfuse.model_folder import load_pipeline

        return load_pipeline(Path(path), device)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the model folder (Hugging Face layout, safetensors and JSON) in one atomic step."""
        from clinfuse.model_folder import save_pipeline

        return save_pipeline(self, Path(path))

    @property
    def device(self) -> torch.device:
        """Where the members live."""
        return next(self.members[0].parameters()).device

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.members[0].config.spatial_dims

    def resolve_preset(self, preset: str | Preset) -> Preset:
        """A preset by name or as it is."""
        return find_preset(self.presets, preset) if isinstance(preset, str) else preset

    def __call__(
        self,
        case: Case,
        preset: str | Preset = "balanced",
        *,
        steps: int | None = None,
        seed: int = 0,
        members: int | None = None,
        samples: int = 1,
        jitters: int = 0,
        guided: bool | None = None,
        guidance: GuidanceConfig | None = None,
        jitter: JitterConfig | None = None,
        align: bool = True,
        progress: Progress | None = None,
    ) -> FusionResult:
        """Fuse one case.

        Args:
            case: validated case.
            preset: name or Preset.
            steps: reverse steps; default the preset's for a teacher, `student_steps` for a student.
            seed: of all noise and jitter; the same seed gives the same image.
            members: how many ensemble members to ask; default all.
            samples: noise draws per member.
            jitters: further draws with the companion warped, for registration uncertainty.
            guided: gradients on or off; default on for a teacher, off for a student.
            guidance: gradient kind, clip and start.
            jitter: amplitudes of those draws.
            align: first undo a misregistration that can be told from the images (clinfuse.alignment).
            progress: called with (done, all) draws.
        """
        count = len(self.members) if members is None else members
        if not 1 <= count <= len(self.members):
            raise ConfigError("members", expected=f"1 to {len(self.members)}", found=str(members))
        case = aligned(case) if align else case
        draws = [(m, s, j) for m in range(count) for s in range(samples) for j in range(jitters + 1)]
        done = []
        for m, s, j in draws:
            done.append(
                self.sample_member(
                    case,
                    m,
                    preset,
                    steps=steps,
                    seed=seed,
                    sample_index=s,
                    jitter_index=j,
                    guided=guided,
                    guidance=guidance,
                    jitter=jitter,
                )
            )
            if progress is not None:
                progress(len(done), len(draws))
        return self.combine(done, case, preset, asked=count, seed=seed)

    def sample_member(
        self,
        case: Case,
        member: int,
        preset: str | Preset = "balanced",
        *,
        steps: int | None = None,
        seed: int = 0,
        sample_index: int = 0,
        jitter_index: int = 0,
        guided: bool | None = None,
        guidance: GuidanceConfig | None = None,
        jitter: JitterConfig | None = None,
    ) -> MemberSample:
        """One member's draw of the case as it is (see `aligned`); independent of every other draw, so that replicas
        can share the work."""
        preset = self.resolve_preset(preset)
        guided = self.kind == "teacher" if guided is None else guided
        steps = steps or (preset.steps if self.kind == "teacher" else self.student_steps)
        warped = self._jittered(case, jitter_index, seed, jitter or JitterConfig())
        own = _seed(seed, member, sample_index)
        batches = self._batches(case, warped, preset)
        maps = []
        for batch in batches:
            guide = self._guide(batch, case, preset, guidance) if guided else None
            maps.append(self._sample_batch(batch, member, steps, [own] * len(batch.anatomy), guide))
        fused, variance, residual = (np.concatenate(parts) for parts in zip(*maps, strict=True))
        return MemberSample(
            fused=fused,
            variance=variance,
            registration=self._registration(batches, case),
            residual_energy=float(np.mean(residual**2)),
            member=member,
            sample=sample_index,
            jitter=jitter_index,
            steps=steps,
        )

    def sample_together(
        self, asks: Sequence[tuple[Case, Preset, int]], member: int, *, steps: int | None = None
    ) -> list[MemberSample]:
        """Unguided first draws of one member of a 2D model for several small cases in one batch.

        Args:
            asks: (case, preset, seed) each; slices of all cases have one size (H, W).
            member: whose draws.
            steps: reverse steps for all; default `student_steps`.

        Returns:
            One sample per ask, equal to what `sample_member` gives for it alone: every slice has its own noise.

        Raises:
            ConfigError: a 3D model, or slices of different sizes.
        """
        if self.spatial_dims != 2 or len({case.shape[1:] for case, _, _ in asks}) != 1:
            raise ConfigError("cannot be sampled together", expected="a 2D model and slices of one size")
        steps = steps or self.student_steps
        own = [self._batches(case, torch.from_numpy(case.companion), preset) for case, preset, _ in asks]
        parts = [batch for batches in own for batch in batches]
        whole = Inputs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        depths = [case.shape[0] for case, _, _ in asks]
        seeds = [
            _seed(seed, member, 0) for (_, _, seed), d in zip(asks, depths, strict=True) for _ in range(d)
        ]
        maps = self._sample_batch(whole, member, steps, seeds, None)
        ends = np.cumsum(depths)[:-1]
        cut = [np.split(volume, ends) for volume in maps]
        return [
            MemberSample(
                fused=fused,
                variance=variance,
                registration=self._registration(batches, case),
                residual_energy=float(np.mean(residual**2)),
                member=member,
                sample=0,
                jitter=0,
                steps=steps,
            )
            for (case, _, _), batches, fused, variance, residual in zip(asks, own, *cut, strict=True)
        ]

    def combine(
        self, samples: Sequence[MemberSample], case: Case, preset: str | Preset, *, asked: int, seed: int
    ) -> FusionResult:
        """Mean image and the law of total variance over members, draws and jitters (Section 3.4).

        Args:
            samples: answers that arrived; at least one.
            asked: members asked; fewer answering marks the result degraded.
        """
        facts = ModelFacts(kind=self.kind, model_hash=self.model_hash, calibration=self.calibration)
        return combine_samples(samples, case, self.resolve_preset(preset), facts, asked=asked, seed=seed)

    def _jittered(self, case: Case, index: int, seed: int, config: JitterConfig) -> Tensor:
        companion = torch.from_numpy(case.companion)[None, None]
        if index == 0:
            return companion[0, 0]
        generator = torch.Generator().manual_seed(_seed(seed, index, -1))
        return apply(draw(config, generator, 3), companion, case.spacing)[0, 0]

    def _batches(self, case: Case, companion: Tensor, preset: Preset) -> list[Inputs]:
        """The case as model inputs: axial slices in batches of 16 (2D), or the volume (3D)."""
        images = [torch.from_numpy(case.anatomy), companion.float()]
        masks = torch.stack([torch.from_numpy(m.astype(np.float32)) for m in case.masks.values()])
        if self.spatial_dims == 3:
            stacked = [i[None, None] for i in images] + [masks[None]]
        else:
            stacked = [i[:, None] for i in images] + [masks.transpose(0, 1)]
        batches = []
        for start in range(0, len(stacked[0]), SLICE_BATCH):
            anatomy, other, rois = (s[start : start + SLICE_BATCH].to(self.device) for s in stacked)
            vector = torch.tensor([preset.vector], device=self.device).expand(len(anatomy), -1)
            batches.append(Inputs(anatomy, other, rois, vector))
        return batches

    def _sample_batch(
        self, batch: Inputs, member: int, steps: int, seeds: Sequence[int], guide: Guide | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Fused, variance and residual, (D, H, W) each, of one batch with a seed per item."""
        denoiser = self.members[member]
        inputs, undo = self._padded(batch)
        done = sample(
            [denoiser],
            inputs,
            diffusion=self.diffusion,
            steps=steps,
            generators=[torch.Generator(self.device).manual_seed(seed) for seed in seeds],
            guide=guide,
        )
        return (
            self._as_volume(done.fused[undo]),
            self._as_volume(done.variance[undo]),
            self._as_volume(done.residual[undo]),
        )

    def _registration(self, batches: Sequence[Inputs], case: Case) -> FloatArray:
        spacing = case.spacing[-self.spatial_dims :]
        return np.concatenate([self._as_volume(registration_variance(batch, spacing)) for batch in batches])

    def _as_volume(self, batch: Tensor) -> FloatArray:
        """(B, 1, H, W) or (1, 1, D, H, W) → (D, H, W)."""
        return np.asarray(batch.squeeze((0, 1) if self.spatial_dims == 3 else (1,)).cpu().numpy())

    def _padded(self, batch: Inputs) -> tuple[Inputs, tuple[slice, ...]]:
        padded: list[Tensor] = []
        undo: tuple[slice, ...] = ()
        for part in batch[:3]:
            grown, undo = pad_to_multiple(part, self.members[0].config.multiple)
            padded.append(grown)
        return Inputs(padded[0], padded[1], padded[2], batch.vector), undo

    def _guide(self, batch: Inputs, case: Case, preset: Preset, config: GuidanceConfig | None) -> Guide:
        inputs, _ = self._padded(batch)
        spacing = case.spacing[-self.spatial_dims :]
        reference = roi_reference(inputs.anatomy, inputs.companion, inputs.masks, spacing, preset.tau_mm)
        head = ((inputs.anatomy > HEAD_LEVEL) | (inputs.companion > HEAD_LEVEL)).float()
        return Guide(
            reference=reference,
            lesion_head=self.lesion_head,
            preset=preset,
            head_mask=head,
            config=config or GuidanceConfig(),
            uncertainty_map=saturating if self.calibration is None else self.calibration.uncertainty_torch,
        )


def _seed(*parts: int) -> int:
    """A 63-bit seed from integers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

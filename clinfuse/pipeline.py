"""FusionPipeline: from a case to the fused image with its uncertainty; the one way to use a model.

D, H, W as in clinfuse.case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clinfuse.alignment import aligned
from clinfuse.case import Case
from clinfuse.combine import FusionResult, MemberSample, ModelFacts, combine_samples
from clinfuse.errors import ConfigError
from clinfuse.features import Features, Part, as_sample, companion_seen, draw_part, see, seed_of
from clinfuse.method.calibration import Calibration
from clinfuse.method.denoiser import Denoiser
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.error_head import ErrorHead
from clinfuse.method.finish import STEPS as FINISH_STEPS
from clinfuse.method.guidance import GuidanceConfig, Guide
from clinfuse.method.jitter import JitterConfig
from clinfuse.method.lesion_head import LesionHead
from clinfuse.method.precision import at_precision, check_precision
from clinfuse.presets import Preset, find_preset, load_presets
from clinfuse.windows import MIN_WINDOW, assembled

Progress = Callable[[int, int], None]

__all__ = ["FusionPipeline", "FusionResult", "MemberSample"]


@dataclass
class FusionPipeline:
    """Members, lesion head, error head, presets and calibration of one model.

    Attributes:
        members: denoisers; one for a single model, K for an ensemble.
        lesion_head: frozen Ŝ, or None (then no lesion guidance).
        diffusion: noise schedule and sampler.
        kind: "teacher" (guided, many steps) or "student" (distilled, few steps, no gradients).
        student_steps: sampler steps of a student.
        window: slices that a 3D model takes at once where memory is short (clinfuse.windows); None: the whole volume.
            A setting of this run and its machine, as are precision and finish: a model folder does not keep them.
        precision: of the networks, "float32" or "bfloat16" (clinfuse.method.precision); see `from_pretrained`.
        finish: descent steps that end the sampling (clinfuse.method.finish); 0 leaves F as it was sampled.
        presets: those that callers may name.
        error_head: what foretells F's error from the variances and the images, or None: the total variance does.
        calibration: map from that standard deviation to calibrated uncertainty, or None.
        metadata: model card facts (recipe, data, seeds), JSON-able.
        model_hash: of all that changes an answer (clinfuse.model_folder); set by saving and loading.
    """

    members: list[Denoiser]
    lesion_head: LesionHead | None
    diffusion: DiffusionConfig
    kind: str = "teacher"
    student_steps: int = 4
    window: int | None = None
    precision: str = "float32"
    finish: int = FINISH_STEPS
    presets: dict[str, Preset] = field(default_factory=load_presets)
    error_head: ErrorHead | None = None
    calibration: Calibration | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    model_hash: str = "unsaved"

    def __post_init__(self) -> None:
        if self.kind not in ("teacher", "student") or not self.members:
            raise ConfigError("not a pipeline", expected="teacher or student with members", found=self.kind)
        check_precision(self.precision)
        if self.window is not None and (self.spatial_dims != 3 or self.window < MIN_WINDOW):
            found = f"{self.window} slices, a {self.spatial_dims}D model"
            wanted = f"at least {MIN_WINDOW} slices, and a 3D model"
            raise ConfigError("window of a volume", expected=wanted, found=found)
        for member in self.members:
            member.eval().requires_grad_(False)
        if self.lesion_head is not None:
            self.lesion_head.freeze()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str = "cpu", calibrated: bool = True, precision: str = "float32"
    ) -> FusionPipeline:
        """Load a model folder; every file is checked against its recorded hash.

        Args:
            path, device: the folder, and torch's name of where to put it.
            calibrated: False leaves error head and calibration out, as before they are made anew.
            precision: of the networks. "float32" gives the same image for the same case, preset and seed, alone or in
                a batch, to 1e-5; "bfloat16" one that differs from it by at most 0.01, and where a lesion guides by
                0.1 at single voxels (clinfuse.method.precision).

        Raises:
            ModelFolderError: missing, corrupted or foreign folder. ConfigError: no such precision.
        """
        from clinfuse.model_folder import load_pipeline

        return replace(load_pipeline(Path(path), device, calibrated), precision=precision)

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

    @property
    def gradient(self) -> str:
        """A guided call's unless told: a student's estimate hardly follows x_t, so that the exact one has no hold."""
        return "cheap" if self.kind == "student" else "exact"

    def network(self, member: int) -> Denoiser:
        """A member as it is run: with its networks at this pipeline's precision."""
        return at_precision(self.members[member], self.precision)

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
        """Fuse one case. Every member's F lies between its two sources at every voxel (`within_sources`).

        Args:
            case: validated case.
            preset: name or Preset.
            steps: reverse steps; default the preset's for a teacher, `student_steps` for a student.
            seed: of all noise and jitter; the same seed gives the same image.
            members: how many ensemble members to ask; default all.
            samples: noise draws per member.
            jitters: further draws with the companion warped, for registration uncertainty.
            guided: gradients on or off; default on for a teacher, off for a student.
            guidance: gradient kind, clip, start and border term; default by this model's `gradient`.
            jitter: amplitudes of those draws.
            align: first undo a misregistration that can be told from the images (clinfuse.alignment).
            progress: called with (done, all) draws.
        """
        count = len(self.members) if members is None else members
        if not 1 <= count <= len(self.members):
            raise ConfigError("members", expected=f"1 to {len(self.members)}", found=str(members))
        if samples < 1 or jitters < 0:
            raise ConfigError("draws", expected="samples >= 1, jitters >= 0", found=f"{samples}, {jitters}")
        case = aligned(case) if align else case
        draws = [(m, s, j) for m in range(count) for s in range(samples) for j in range(jitters + 1)]
        options: dict[str, Any] = {"steps": steps, "guided": guided, "guidance": guidance, "jitter": jitter}
        done = []
        for m, s, j in draws:
            which: dict[str, Any] = {"sample_index": s, "jitter_index": j, **options}
            done.append(self.sample_member(case, m, preset, seed=seed, **which))
            if progress is not None:
                progress(len(done), len(draws))
        return self.combine(done, case, preset, asked=count, seed=seed)

    def encode(
        self,
        case: Case,
        member: int,
        *,
        seed: int = 0,
        jitter_index: int = 0,
        jitter: JitterConfig | None = None,
    ) -> Features:
        """What a member sees of the case as it is (see `aligned`), whatever the preset: encoders' features, the parts
        of fusion prior and registration variance. Given to `sample_member`, a changed preset costs only the steps.
        """
        parts = tuple(self._parts(case, member, seed, jitter_index, jitter))
        return Features(member=member, jitter=jitter_index, shape=case.shape, parts=parts)

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
        features: Features | None = None,
    ) -> MemberSample:
        """One member's draw of the case as it is (see `aligned`); independent of every other draw, so that replicas
        can share the work.

        Args:
            features: of this case, member and jitter by `encode`, or None to make them batch by batch, so that only
                one batch's are in memory at a time; the result is the same.

        Raises:
            ConfigError: no such preset, impossible steps, or features of something else.
        """
        preset = self.resolve_preset(preset)
        guided = self.kind == "teacher" if guided is None else guided
        if steps is None:
            steps = preset.steps if self.kind == "teacher" else self.student_steps
        if features is not None:
            features.check(case, member, jitter_index)
        parts = features.parts if features else self._parts(case, member, seed, jitter_index, jitter)
        own, spacing = seed_of(seed, member, sample_index), case.spacing[-self.spatial_dims :]
        guidance = guidance or GuidanceConfig(gradient=self.gradient)
        head = self.lesion_head and at_precision(self.lesion_head, self.precision)
        starts, maps = [], []
        for part in parts:
            batch = len(part.inputs.anatomy)
            guide = Guide.of(part.inputs, spacing, head, preset, guidance) if guided else None
            starts.append(part.start)
            maps.append(
                draw_part(
                    self.network(member),
                    part,
                    [preset] * batch,
                    [own] * batch,
                    diffusion=self.diffusion,
                    steps=steps,
                    finish=self.finish,
                    guide=guide,
                )
            )
        volumes = [assembled(starts, parts) for parts in zip(*maps, strict=True)]
        which = {"member": member, "sample": sample_index, "jitter": jitter_index}
        return as_sample(volumes, steps=steps, precision=self.precision, **which)

    def sample_together(
        self,
        asks: Sequence[tuple[Case, Preset, int]],
        member: int,
        *,
        steps: int | None = None,
        features: Sequence[Features | None] = (),
    ) -> list[MemberSample]:
        """Unguided first draws of one member of a 2D model for several small cases in one batch.

        Args:
            asks: (case, preset, seed) each; slices of all cases have one size (H, W).
            member: whose draws.
            steps: reverse steps for all; default `student_steps`.
            features: of every ask by `encode`, or None for those to be made; empty for none.

        Returns:
            One sample per ask, equal to what `sample_member` gives for it alone: every slice has its own noise.

        Raises:
            ConfigError: a 3D model, slices of different sizes, impossible steps, or features of something else.
        """
        from clinfuse.together import sample_together

        return sample_together(self, asks, member, self.student_steps if steps is None else steps, features)

    def combine(
        self, samples: Sequence[MemberSample], case: Case, preset: str | Preset, *, asked: int, seed: int
    ) -> FusionResult:
        """Mean image and the law of total variance over members, draws and jitters (Section 3.4).

        Args:
            samples: answers that arrived; at least one.
            asked: members asked; fewer answering marks the result degraded.
        """
        facts = ModelFacts(
            kind=self.kind,
            model_hash=self.model_hash,
            error_head=self.error_head,
            calibration=self.calibration,
        )
        return combine_samples(samples, case, self.resolve_preset(preset), facts, asked=asked, seed=seed)

    def _parts(
        self, case: Case, member: int, seed: int, jitter_index: int, jitter: JitterConfig | None
    ) -> Iterator[Part]:
        seen = companion_seen(case, seed, jitter_index, jitter)
        return see(self.network(member), case, seen, self.device, self.window)

"""What a model gets wrong on cases whose truth is known: one observer per actor, all cases over all actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clinfuse.case import FloatArray, MaskArray

if TYPE_CHECKING:
    from clinfuse.case import Case
    from clinfuse.method.error_head import ErrorHead
    from clinfuse.training.error_fit import ErrorRows

LEARN_SLICES = 24
"""The error head sees a slab of so many slices of a case: many patients teach more than whole ones."""


CONTRAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is observed, and how.

    Attributes:
        model, data: folder of the model, path of the dataset.
        preset: by name.
        slices: axial slab of each case that is observed whole otherwise, or None.
        steps, seed: see FusionPipeline.__call__.
    """

    model: str
    data: str
    preset: str
    slices: int | None
    steps: int | None
    seed: int


class Observed(NamedTuple):
    """The patient's pseudonym and the voxels of one case where its reference is one: predicted standard deviation and
    error (N,), image units, and the masks (N,)."""

    patient: str
    std: FloatArray
    error: FloatArray
    brain: MaskArray
    bone: MaskArray
    lesion: MaskArray

    @property
    def rois(self) -> dict[str, MaskArray]:
        """The masks by name."""
        return {"brain": self.brain, "bone": self.bone, "lesion": self.lesion}


class Observer:
    """Holds the dataset and the model, without what calibrates it."""

    def __init__(self, setting: Setting, threads: int, device: str) -> None:
        import torch
        from clinfuse_prep.store import CaseStore
        from upath import UPath

        from clinfuse.pipeline import FusionPipeline
        from clinfuse_platform.runs import local_copy

        torch.set_num_threads(threads)
        self.store, self.setting = CaseStore(setting.data), setting
        folder = local_copy(UPath(setting.model))
        self.pipeline = FusionPipeline.from_pretrained(folder, device=device, calibrated=False)
        self.preset = self.pipeline.resolve_preset(setting.preset)

    def learn(self, number: int, case_id: str) -> ErrorRows:
        """What the error head learns from one training case: voxels of a slab, whose place differs from case to case.

        Every second case is seen with automatic masks, as most are in use, and grey values vary as they do from scanner
        to scanner. Where the aligned companion is known, the error is known in all of the head, else only in the
        regions that have a reference.
        """
        from clinfuse.alignment import aligned
        from clinfuse.evaluation.uncertain import error_and_regions
        from clinfuse.method.error_features import head_voxels
        from clinfuse.training.error_fit import error_rows
        from clinfuse_platform.variants import automatic_masks

        case = self.store.read(case_id)
        if number % 2:
            case = replace(case, **automatic_masks(case))
        case, rng = aligned(case), np.random.default_rng((self.setting.seed, number))
        count = min(LEARN_SLICES, case.shape[0])
        start = int(rng.integers(case.shape[0] - count + 1))
        case = other_contrast(case.slices(start, start + count), seed=number)
        result = self.pipeline(
            case, self.preset, steps=self.setting.steps, seed=self.setting.seed, align=False
        )
        error, regions = error_and_regions(case, result.fused, self.preset)
        known = regions["head"] if case.aligned_companion is None else head_voxels(case)
        return error_rows(case, result.fused, result.variances, error, known, rng)

    def observe(self, case_id: str, error_head: ErrorHead) -> Observed:
        """One validation case with that error head."""
        from clinfuse.evaluation.uncertain import error_and_regions
        from clinfuse_platform.variants import slab

        self.pipeline.error_head = error_head
        case = slab(self.store.read(case_id), self.setting.slices)
        result = self.pipeline(case, self.preset, steps=self.setting.steps, seed=self.setting.seed)
        error, regions = error_and_regions(case, result.fused, self.preset)
        where = regions["head"]
        masks = (mask[where] for mask in (case.brain, case.bone, case.lesion))
        patient = str(case.attrs.get("patient", case.case_id))
        return Observed(patient, result.std[where], error[where], *masks)


def other_contrast(case: Case, seed: int) -> Case:
    """The case with other grey values in a share of both images, see clinfuse.training.contrast."""
    import torch

    from clinfuse.training.contrast import vary_contrast

    known = case.companion if case.aligned_companion is None else case.aligned_companion
    images = {"anatomy": case.anatomy, "companion": case.companion, "aligned": known, "brain": case.brain}
    batch = {
        name: torch.from_numpy(np.ascontiguousarray(image))[None, None] for name, image in images.items()
    }
    varied = {name: image[0, 0].numpy() for name, image in vary_contrast(batch, CONTRAST_SHARE, seed).items()}
    return replace(
        case,
        anatomy=varied["anatomy"],
        companion=varied["companion"],
        aligned_companion=None if case.aligned_companion is None else varied["aligned"],
    )


class Observers:
    """As many observers as the open Ray session has room for; what they answer comes in the order of the cases."""

    def __init__(self, setting: Setting, cases: int) -> None:
        import ray

        from clinfuse_platform.evaluate import actor_size

        count, options, threads, device = actor_size(cases, 0)
        remote: Any = ray.remote(num_cpus=1)(Observer)
        self.actors = [remote.options(**options).remote(setting, threads, device) for _ in range(count)]

    def learn(self, case_ids: Sequence[str]) -> list[ErrorRows]:
        """`Observer.learn` of every case."""
        from clinfuse.training.error_fit import ErrorRows

        found = self._over("learn", list(enumerate(case_ids)), "training cases")
        return [ErrorRows(*map(np.array, rows)) for rows in found]

    def observe(self, case_ids: Sequence[str], error_head: ErrorHead) -> list[Observed]:
        """`Observer.observe` of every case."""
        found = self._over("observe", [(case_id, error_head) for case_id in case_ids], "validation cases")
        return [Observed(one.patient, *map(np.array, one[1:])) for one in found]

    def _over(self, method: str, asks: Sequence[tuple[Any, ...]], label: str) -> Iterator[Any]:
        """What the method answers to every ask; arrays lie in Ray's object store until they are copied.

        Raises:
            What an observer raised, at the first case that fails: with fewer cases it would be another calibration.
        """
        from ray.util import ActorPool

        from clinfuse.console import progress

        pool: Any = ActorPool(self.actors)
        answers = pool.map(lambda actor, ask: getattr(actor, method).remote(*ask), asks)
        return iter(progress(answers, total=len(asks), label=label))

    def close(self) -> None:
        """End them."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

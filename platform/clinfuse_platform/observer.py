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
LESION_SHARE = 0.75
"""Of the training cases with a lesion, those whose slab reaches it for certain: lesions are small and of many kinds."""
CONTRAST_SHARE = 0.5
"""Of the training cases, other grey values of the anatomy image; and as often of the companion."""
MOST_MM = 2.0
"""Every second training case is moved by a warp of up to that amplitude before it is aligned."""
SMALL_MM = 1.0
"""The same of those that are aligned whole: many of these are too little off to be moved back, as in use."""
CYCLE = 8
"""So many training cases in a row differ: as stored or exactly right, moved, with automatic masks (see `as_in_use`)."""
LOOKS = 2
"""How often the error head learns from a training case by default, each time one of another kind."""


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
    """The patient's pseudonym, the kind of companion ("CT"), and the voxels of one case where its reference is one:
    predicted standard deviation and error (N,), image units, and the masks (N,)."""

    patient: str
    companion: str
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
        """What the error head learns from one training case: voxels of a slab, seen `as_in_use`.

        The error is that to the aligned pair.
        """
        from clinfuse.evaluation.uncertain import error_and_regions
        from clinfuse.method.error_features import head_voxels
        from clinfuse.training.error_fit import error_rows

        rng = np.random.default_rng((self.setting.seed, number))
        case = as_in_use(self.store.read(case_id), number, self.setting.seed, rng)
        result = self.pipeline(
            case, self.preset, steps=self.setting.steps, seed=self.setting.seed, align=False
        )
        error, _ = error_and_regions(case, result.fused, self.preset)
        return error_rows(case, result.fused, result.variances, error, head_voxels(case), rng)

    def observe(self, case_id: str, error_head: ErrorHead) -> Observed:
        """One validation case, aligned, with that error head; what was found is true where nothing else is known."""
        from clinfuse.alignment import aligned
        from clinfuse.evaluation.uncertain import error_and_regions
        from clinfuse_platform.variants import slab

        self.pipeline.error_head = error_head
        case = aligned(slab(self.store.read(case_id), self.setting.slices))
        result = self.pipeline(
            case, self.preset, steps=self.setting.steps, seed=self.setting.seed, align=False
        )
        error, regions = error_and_regions(case, result.fused, self.preset)
        where = regions["head"]
        masks = (mask[where] for mask in (case.brain, case.bone, case.lesion))
        patient = str(case.attrs.get("patient", case.case_id))
        return Observed(patient, case.modalities[1], result.std[where], error[where], *masks)


def seen(case_ids: Sequence[str], count: int) -> list[str]:
    """Training cases in the order in which they are seen, each `count` times; a place there is `as_in_use`'s number.

    Every look comes a place earlier among the others than the one before, or three places where it would be of the
    same kind as that one.
    """
    step = 3 if len(case_ids) % CYCLE == 1 else 1
    moves = [turn * step % len(case_ids) for turn in range(count)]
    return [case_id for move in moves for case_id in (*case_ids[move:], *case_ids[:move])]


def as_in_use(case: Case, number: int, seed: int, rng: np.random.Generator) -> Case:
    """A slab of a training case as cases come in use; its place differs from case to case, most reach the lesion.

    Every second one has automatic masks; of both kinds every second one is misregistered by a warp drawn for it, a
    quarter is as stored and a quarter lies exactly right: where nothing is misregistered, F's gap to its source is the
    error, which the others do not teach. All are aligned whole but half of the misregistered, which are aligned as far
    as a slab by itself can be. Grey values vary as they do from scanner to scanner. A pair whose true alignment is not
    known is aligned, counts as true then, and is always misregistered.

    Args:
        case: whole, (D, H, W).
        number: of the case among those learned from: it says which of the kinds above.
        seed: of the warp.
        rng: draws the warp's amplitude and the slab's place.
    """
    from clinfuse.alignment import aligned
    from clinfuse_platform.variants import misregistered, with_automatic_masks

    known = case.aligned_companion is not None
    if not known:
        case = aligned(case)
        case = replace(case, aligned_companion=case.companion)
    moved = number % 4 > 1 or not known
    first = number % CYCLE < CYCLE // 2
    exact = first and not moved
    amplitude_mm = float(rng.uniform(0, MOST_MM if first else SMALL_MM))
    if moved or exact:
        case = misregistered(case, 0.0 if exact else amplitude_mm, seed)
    if number % 2:
        case = with_automatic_masks(case)
    case = case if moved and first else aligned(case)
    return other_contrast(aligned(case.slices(*drawn_slab(case, rng))), seed=number)


def drawn_slab(case: Case, rng: np.random.Generator) -> tuple[int, int]:
    """First slice of a slab of a case, and the one after its last; see `LESION_SHARE`."""
    count = min(LEARN_SLICES, case.shape[0])
    first, last = 0, case.shape[0] - count
    lesion = np.flatnonzero((case.lesion > 0).any(axis=(1, 2)))
    if lesion.size and rng.random() < LESION_SHARE:
        reached = int(rng.choice(lesion))
        first, last = max(first, reached - count + 1), min(last, reached)
    start = int(rng.integers(first, last + 1))
    return start, start + count


def other_contrast(case: Case, seed: int) -> Case:
    """A case of known alignment with other grey values in a share of both images, see clinfuse.training.contrast."""
    import torch

    from clinfuse.training.contrast import vary_contrast

    images = {
        "anatomy": case.anatomy,
        "companion": case.companion,
        "aligned": case.aligned_companion,
        "brain": case.brain,
    }
    batch = {
        name: torch.from_numpy(np.ascontiguousarray(image))[None, None] for name, image in images.items()
    }
    varied = {name: image[0, 0].numpy() for name, image in vary_contrast(batch, CONTRAST_SHARE, seed).items()}
    return replace(
        case,
        anatomy=varied["anatomy"],
        companion=varied["companion"],
        aligned_companion=varied["aligned"],
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
        return [Observed(*one[:2], *map(np.array, one[2:])) for one in found]

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

"""What one member does with an order: alone, or slices of several requests in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from clinfuse.case import Case
from clinfuse_serve.backend import Order
from clinfuse_serve.kept_features import KeptFeatures

if TYPE_CHECKING:
    from clinfuse.combine import MemberSample
    from clinfuse.pipeline import FusionPipeline


class Ask(NamedTuple):
    """One slice that waits to be drawn."""

    pipeline: FusionPipeline
    part: Case
    order: Order

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for asks that fit into one batch."""
        return id(self.pipeline), self.part.shape, self.order.steps


def fits_batch(pipeline: FusionPipeline, part: Case, order: Order) -> bool:
    """Whether an order may be drawn together with others: one slice, one draw, no gradients, a 2D model."""
    guided = pipeline.kind == "teacher" if order.guided is None else order.guided
    return pipeline.spatial_dims == 2 and not guided and part.shape[0] == 1 and order.draws == ((0, 0),)


def draw_together(
    asks: Sequence[Ask], member: int, kept: KeptFeatures | None = None
) -> list[list[MemberSample]]:
    """Samples of every ask, those of like shape in one batch; each as if drawn alone."""
    kept = kept or KeptFeatures(0, 0)
    results: list[list[MemberSample]] = [[] for _ in asks]
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, ask in enumerate(asks):
        groups.setdefault(ask.likeness, []).append(index)
    for indices in groups.values():
        first = asks[indices[0]]
        wanted = [(asks[i].part, asks[i].order.preset, asks[i].order.seed) for i in indices]
        seen = [
            kept.features(a.pipeline, a.part, member, a.order, depth=1) for a in (asks[i] for i in indices)
        ]
        drawn = first.pipeline.sample_together(wanted, member, steps=first.order.steps, features=seen)
        for index, sample in zip(indices, drawn, strict=True):
            results[index] = [sample]
    return results

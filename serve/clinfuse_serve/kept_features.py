"""What a member saw of the cases that were fused lately, so that a changed preset costs only the student's steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clinfuse.case import Case
from clinfuse_serve.recent import Recent

if TYPE_CHECKING:
    from clinfuse.features import Features
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_serve.backend import Order


class KeptFeatures:
    """Features by model version, precision, case, slices and member, within a bound of bytes and of idle seconds.

    A volume comes slab by slab. If all its slabs would not fit together, each would push out another before it is
    used again; then only single slices, which a page asks for while a reader moves the slider, are kept.

    Args:
        max_bytes: memory of all features; 0 keeps nothing.
        max_idle_s: how long unused ones are kept.
    """

    def __init__(self, max_bytes: int, max_idle_s: float) -> None:
        self._recent: Recent[Features] = Recent(max_bytes, max_idle_s)
        self.hits = 0

    def features(
        self, pipeline: FusionPipeline, part: Case, member: int, order: Order, depth: int
    ) -> Features:
        """Features of a part of a case: those that are kept, or new ones, kept if the order names its case.

        Args:
            part: what the order asks of the case.
            depth: slices D of the whole case.
        """
        key = (pipeline.model_hash, pipeline.precision, order.case, order.slab, member)
        kept = self._recent.get(key) if order.case else None
        if kept is not None:
            self.hits += 1
            return kept
        made = pipeline.encode(part, member)
        if order.case and self._worth_keeping(made.nbytes, part.shape[0], depth):
            self._recent.put(key, made, made.nbytes)
        return made

    @property
    def bytes(self) -> int:
        """Memory of all features."""
        return self._recent.bytes

    def _worth_keeping(self, nbytes: int, slices: int, depth: int) -> bool:
        whole = nbytes * depth / slices
        return whole <= self._recent.max_bytes or (slices == 1 and nbytes <= self._recent.max_bytes)

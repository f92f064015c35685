"""A volume in parts: axial slabs one after another, so that slices of others wait for one slab at most, progress can
be told, and a cancelled request stops after the slab at hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clinfuse.combine import MemberSample

if TYPE_CHECKING:
    from clinfuse_serve.backend import Order

SLAB = 16
Draw = Callable[["Order"], Awaitable[list[MemberSample]]]
Tell = Callable[[], None]


def split(order: Order, depth: int) -> list[Order]:
    """The order as one order a slab of at most 16 slices.

    Args:
        order: for a model and draws whose slices do not depend on each other.
        depth: slices D of the case.
    """
    start, stop = order.slab or (0, depth)
    return [replace(order, slab=(low, min(low + SLAB, stop))) for low in range(start, stop, SLAB)]


def join(parts: Sequence[Sequence[MemberSample]]) -> list[MemberSample]:
    """Samples of the slabs, in order, as samples of the whole: equal to drawing it at once."""
    if len(parts) == 1:
        return list(parts[0])
    whole = []
    for drawn in zip(*parts, strict=True):
        weights = [sample.fused.size for sample in drawn]
        energy = np.average([sample.residual_energy for sample in drawn], weights=weights)
        fused = np.concatenate([sample.fused for sample in drawn])
        variance = np.concatenate([sample.variance for sample in drawn])
        registration = np.concatenate([sample.registration for sample in drawn])
        whole.append(
            replace(
                drawn[0],
                fused=fused,
                variance=variance,
                registration=registration,
                residual_energy=float(energy),
            )
        )
    return whole


async def draw_in_turn(draw: Draw, orders: Sequence[Order], tell: Tell) -> list[MemberSample]:
    """One member's samples of all parts; `tell` is called after each."""
    parts = []
    for order in orders:
        parts.append(await draw(order))
        tell()
    return join(parts)

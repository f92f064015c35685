"""Batches of several voxel spacings, for losses that measure in millimetres: one spacing at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SAME_MM = 1e-3
"""Spacings that agree to this are one: affines are read with rounding errors."""


def by_spacing(
    batch: Mapping[str, Tensor], act: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What `act` makes of a batch when it sees samples of one spacing at a time.

    Args:
        batch: tensors (B, …), among them "spacing" (B, d) in mm.
        act: tensors (b, …) of one spacing → tensors (b, …), every sample's by that sample alone.

    Returns:
        Tensors (B, …) in the batch's order.
    """
    group = torch.unique((batch["spacing"] / SAME_MM).round(), dim=0, return_inverse=True)[1]
    numbers = [torch.nonzero(group == g).flatten() for g in range(int(group.max()) + 1)]
    if len(numbers) == 1:
        return dict(act(dict(batch)))
    parts = [act({name: value[number] for name, value in batch.items()}) for number in numbers]
    order = torch.cat(numbers).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

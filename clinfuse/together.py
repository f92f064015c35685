"""Several small cases drawn in one batch, so that many requests for a slice cost little more than one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clinfuse.case import Case
from clinfuse.combine import MemberSample
from clinfuse.errors import ConfigError
from clinfuse.features import Features, Part, as_sample, draw_part, seed_of
from clinfuse.presets import Preset

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline


def sample_together(
    pipeline: FusionPipeline,
    asks: Sequence[tuple[Case, Preset, int]],
    member: int,
    steps: int,
    features: Sequence[Features | None],
) -> list[MemberSample]:
    """See `FusionPipeline.sample_together`."""
    if pipeline.spatial_dims != 2 or len({case.shape[1:] for case, _, _ in asks}) != 1:
        raise ConfigError("cannot be sampled together", expected="a 2D model and slices of one size")
    parts: list[Part] = []
    for (case, _, _), known in zip(asks, features or [None] * len(asks), strict=True):
        seen = known or pipeline.encode(case, member)
        seen.check(case, member, 0)
        parts += seen.parts
    depths = [case.shape[0] for case, _, _ in asks]
    slices = [ask for ask, depth in zip(asks, depths, strict=True) for _ in range(depth)]
    maps = draw_part(
        pipeline.network(member),
        together(parts),
        [preset for _, preset, _ in slices],
        [seed_of(seed, member, 0) for _, _, seed in slices],
        diffusion=pipeline.diffusion,
        steps=steps,
        finish=pipeline.finish,
    )
    cut = zip(*(np.split(volume, np.cumsum(depths)[:-1]) for volume in maps), strict=True)
    facts: dict[str, Any] = {"member": member, "steps": steps, "precision": pipeline.precision}
    return [as_sample(volumes, **facts) for volumes in cut]


def together(parts: Sequence[Part]) -> Part:
    """Parts of equal spatial shape as one batch."""
    if len(parts) == 1:
        return parts[0]
    inputs, seen, steep = (_concatenated([part[k] for part in parts]) for k in (0, 2, 3))
    return Part(inputs, parts[0].undo, seen, steep, parts[0].start)


def _concatenated(trees: Sequence[Any]) -> Any:
    """Nested tuples of tensors of equal form, joined along the batch."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    joined = [_concatenated(branch) for branch in zip(*trees, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)

"""The trivial methods that every table must contain: they beat most published networks on the field's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

THICK_SLICES = 2.5
SLICE_BATCH = 16


def mean(case: Case, preset: Preset) -> FloatArray:
    """(I_M + I_C) / 2; (D, H, W) in [0, 1]."""
    return np.asarray((case.anatomy + case.companion) / 2, dtype=np.float32)


def maximum(case: Case, preset: Preset) -> FloatArray:
    """max(I_M, I_C) voxel by voxel; (D, H, W) in [0, 1]."""
    return np.maximum(case.anatomy, case.companion)


def anatomy_alone(case: Case, preset: Preset) -> FloatArray:
    """I_M, as if nothing had been fused; (D, H, W) in [0, 1]."""
    return case.anatomy.copy()


def companion_alone(case: Case, preset: Preset) -> FloatArray:
    """I_C, as if nothing had been fused; (D, H, W) in [0, 1]."""
    return case.companion.copy()


def hard_roi(case: Case, preset: Preset) -> FloatArray:
    """I_M in brain, I_C in bone, max elsewhere, pasted without transition; (D, H, W) in [0, 1].

    Bone wins where both masks claim a voxel. The best a table of ROI scores can show and the worst at borders.
    """
    fused = np.where(case.brain > 0, case.anatomy, np.maximum(case.anatomy, case.companion))
    return np.where(case.bone > 0, case.companion, fused)


def prior(case: Case, preset: Preset) -> FloatArray:
    """The fusion prior x₀ itself, in which the denoiser is anchored; (D, H, W) in [0, 1].

    Stacks of thick slices (more than 2.5 × the in-plane spacing) are composed slice by slice, volumes in 3D.
    """
    from clinfuse.method.prior import fusion_prior

    depth, height, width = case.spacing
    thick = case.shape[0] < 8 or depth > THICK_SLICES * min(height, width)
    return _composed(case, preset, fusion_prior, by_slice=thick)


def refined(case: Case, preset: Preset) -> FloatArray:
    """The refined prior, which the denoiser learns to give: the composition optimised slice by slice for L_ROI,
    grey levels and seams (clinfuse.method.refine); (D, H, W) in [0, 1]."""
    from clinfuse.method.refine import refined_prior

    return _composed(case, preset, refined_prior, by_slice=True)


def _composed(case: Case, preset: Preset, compose: Callable[..., Any], *, by_slice: bool) -> FloatArray:
    import torch

    from clinfuse.method.inputs import Inputs

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        volume = torch.from_numpy(np.array(array, dtype=np.float32))
        return volume[:, None] if by_slice else volume[None, None]

    images = [tensor(case.anatomy), tensor(case.companion)]
    masks = torch.cat([tensor(mask) for mask in case.masks.values()], dim=1)
    vector = torch.tensor([preset.vector] * len(masks), dtype=torch.float32)
    ct = torch.full((len(masks),), float(case.has_ct))
    batches = zip(*(part.split(SLICE_BATCH) for part in (*images, masks, vector, ct)), strict=True)
    with torch.no_grad():
        fused = torch.cat([compose(Inputs(*batch)) for batch in batches])
    return np.asarray(fused.clamp(0, 1).reshape(case.shape).numpy())

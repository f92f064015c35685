"""The fusion prior: the ROI-composed target x₀ that the denoiser learns (no true fused image exists).

Multi-scale (Laplacian) composition under soft ROI weights: MRI in brain, CT in bone, local saliency elsewhere and in
the lesion. Blending each band with weights smoothed at that band's scale leaves no seam at ROI borders
(Burt and Adelson, ACM TOG 1983). CT findings inside brain (blood, calcification) are carried over, see `findings`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clinfuse.method.filters import gaussian_blur
from clinfuse.method.inputs import Inputs, per_voxel

LEVELS = 1
SALIENCY_SHARE = 0.03
SHARPNESS = 3
FINDING_SIGMAS = (3.0, 5.0)
FINDING_MIN_CONTRAST = 0.006
FINDING_GREY = 0.85
"""In which the companion's findings inside brain are painted into the anatomy image, 0 to 1."""


class Sources(NamedTuple):
    """What the composition takes from one batch of pairs whatever the preset; look once, compose as often as wanted.

    Attributes:
        companion: (B, 1, *S) as given.
        painted: (B, 1, *S) the anatomy image with the companion's findings painted in, at grey 0.85. In a bone
            window blood differs from brain by two grey levels in a hundred, so that no mixture of the two sources
            could show it; what is bright already stays as it is.
        findings: (B, 1, *S) in [0, 1], see `findings`.
        room: (B, 1, *S) how far the anatomy image is below that grey, at least 0.
        soft: (B, 3, *S) smoothed masks of brain, bone, lesion.
        salient_anatomy, salient_companion: (B, 1, *S).
        details, rest: Laplacian pyramid of (painted, companion), (B, 2, *S) and coarser.
    """

    companion: Tensor
    painted: Tensor
    findings: Tensor
    room: Tensor
    soft: Tensor
    salient_anatomy: Tensor
    salient_companion: Tensor
    details: tuple[Tensor, ...]
    rest: Tensor


def fusion_prior(inputs: Inputs, grey: float = FINDING_GREY) -> Tensor:
    """Compose the target of one batch of aligned pairs.

    Args:
        inputs: see there.
        grey: in which findings of a CT are painted, 0 to 1; 0 paints none.

    Returns:
        (B, 1, *S) in [0, 1].
    """
    return compose(look(inputs, grey), inputs.vector)


def look(inputs: Inputs, grey: float = FINDING_GREY) -> Sources:
    """The part of `fusion_prior` that does not depend on the preset; arguments as there."""
    anatomy, companion = inputs.anatomy, inputs.companion
    brain, bone, _ = inputs.rois
    shown = findings(companion, brain, bone)
    room = (grey * per_voxel(inputs.ct, anatomy) - anatomy).clamp_min(0)
    painted = anatomy + shown * room
    details, rest = _pyramid(torch.cat([painted, companion], dim=1))
    return Sources(
        companion=companion,
        painted=painted,
        findings=shown,
        room=room,
        soft=gaussian_blur(inputs.masks, 0.8),
        salient_anatomy=_saliency(anatomy),
        salient_companion=_saliency(companion),
        details=details,
        rest=rest,
    )


def compose(sources: Sources, vector: Tensor) -> Tensor:
    """The prior (B, 1, *S) in [0, 1] for preset vectors (B, 6): a Laplacian-pyramid blend under one weight map."""
    weight = weight_of(sources, vector)
    weights = [weight]
    for _ in sources.details:
        weights.append(_down(weights[-1]))
    fused = _mix(sources.rest, weights.pop())
    for detail, weight in zip(reversed(sources.details), reversed(weights), strict=True):
        fused = _up(fused, detail.shape[2:]) + _mix(detail, weight)
    return fused.clamp(0, 1)


def within_sources(fused: Tensor, anatomy: Tensor, sources: Sources) -> Tensor:
    """F (B, 1, *S) held at every voxel between its sources: nothing is brighter or darker than both.

    Where the companion shows a finding inside brain, the upper bound is the grey in which that is painted.
    """
    return fused.clamp(
        torch.minimum(anatomy, sources.companion), torch.maximum(sources.painted, sources.companion)
    )


def weight_of(sources: Sources, vector: Tensor) -> Tensor:
    """How much of the companion each voxel shows, (B, 1, *S) in [0, 1].

    α and β weigh the soft brain and bone masks against each other where they meet, and the two sources' saliency
    (the brighter and more structured one wins smoothly) outside both and in the lesion.
    """
    share = vector[:, :3].reshape(-1, 3, *[1] * (sources.soft.ndim - 2))
    alpha, beta, gamma = share[:, 0:1], share[:, 1:2], share[:, 2:3]
    in_brain, in_bone, in_lesion = sources.soft[:, 0:1], sources.soft[:, 1:2], sources.soft[:, 2:3]
    open_share = SALIENCY_SHARE + 0.5 * gamma * in_lesion
    for_c = (beta + 0.02) * (in_bone**2 + open_share * sources.salient_companion)
    for_m = (alpha + 0.02) * (in_brain**2 + open_share * sources.salient_anatomy)
    return for_c / (for_c + for_m + 1e-6)


def _saliency(image: Tensor) -> Tensor:
    """Brightness plus local contrast, sharpened so that the more salient source dominates."""
    local = gaussian_blur(image, 1.0)
    contrast = gaussian_blur((image - local).abs(), 1.0)
    return (local + 4 * contrast + 1e-3) ** SHARPNESS


def findings(companion: Tensor, brain: Tensor, bone: Tensor) -> Tensor:
    """Where the companion shows dense matter inside brain (blood, calcification), (B, 1, *S) in [0, 1].

    A voxel counts as it exceeds the brain's own median by 3 to 5 robust standard deviations after smoothing, away
    from bone (partial volume). Scale-free, so it works on HU windows and on 8-bit images of unknown window.
    """
    core = (gaussian_blur(brain, 1.5) > 0.9) & (gaussian_blur(bone, 3.0) < 0.02) & (brain > 0.5)
    smooth = gaussian_blur(companion, 0.8)
    axes = tuple(range(1, companion.ndim))
    inside = torch.where(core, smooth, torch.nan).flatten(1)
    median = inside.nanmedian(dim=1).values
    spread = (inside - median[:, None]).abs().nanmedian(dim=1).values * 1.4826
    shape = (-1, *[1] * len(axes))
    low, high = FINDING_SIGMAS
    median, spread = (v.nan_to_num(1.0).reshape(shape) for v in (median, spread))
    spread = spread.clamp_min(FINDING_MIN_CONTRAST / low)
    score = ((smooth - median) / spread - low) / (high - low)
    return gaussian_blur(score.clamp(0, 1) * core, 0.7).clamp(0, 1) * (brain > 0.5)


def _pyramid(pair: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Details of the pair (B, 2, *S) per level, fine to coarse, and what rests."""
    details = []
    for _ in range(min(LEVELS, _usable_levels(pair))):
        coarse = _down(pair)
        details.append(pair - _up(coarse, pair.shape[2:]))
        pair = coarse
    return tuple(details), pair


def _mix(pair: Tensor, weight: Tensor) -> Tensor:
    return pair[:, 0:1] * (1 - weight) + pair[:, 1:2] * weight


def _usable_levels(image: Tensor) -> int:
    return max(0, min(image.shape[2:]).bit_length() - 3)


def _down(image: Tensor) -> Tensor:
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(gaussian_blur(image, 0.7), 2, ceil_mode=True)


def _up(image: Tensor, shape: torch.Size) -> Tensor:
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return F.interpolate(image, size=tuple(shape), mode=mode, align_corners=False)

"""The finish: of all images near what was sampled the one without borders that neither source has.

A seam of a third of a grey level asks for more exactness than a small network has on images it never saw. So sampling
ends with the F that minimises

    Σ w·(F − F₀)² + μ·Σ_band max(0, |∇F| − max(|∇I_M|, |∇I_C|))²

F₀ what was sampled, the band one voxel to either side of the borders of brain and bone. It needs no network. The sum is
convex and its slope is bounded, so that a few steps of accelerated descent are near its one answer, and last bits of F₀
do not grow: the same image, alone or in a batch.

Reference: Nesterov, Introductory Lectures on Convex Optimization, 2004, scheme 2.2.11 (constant momentum).
Legend: B batch; *S two or three spatial axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clinfuse.method.filters import largest_within
from clinfuse.method.inputs import Inputs
from clinfuse.method.refine import border
from clinfuse.method.seam_loss import SIGMA, gradient_magnitude

STEPS = 12
SEAM_WEIGHT = 80.0
"""μ."""
BONE_WEIGHT = 8.0
"""w in bone, which keeps its greys; 1 elsewhere."""
STEEPEST = math.exp(-1) / SIGMA**2
"""Largest share of an image's square that its gradient's square can have, in any number of dimensions."""
LESION_REACH = 6
"""Voxels about a lesion in which no border counts: what guidance did there is not the finish's to undo."""
MARGIN = 6
"""Voxels about the band that its slopes can read or change: twice a window's half width, and a little more."""
AT_ONCE = 4
"""Samples finished together, so that memory does not grow with the batch."""


def finished(sampled: Tensor, inputs: Inputs, steps: int = STEPS) -> Tensor:
    """F (B, 1, *S) in [0, 1] for F₀ of that shape and range; 0 steps change nothing."""
    if steps == 0:
        return sampled
    parts = zip(*(whole.split(AT_ONCE) for whole in (sampled, *inputs)), strict=True)
    return torch.cat([_finish(one, Inputs(*rest), steps) for one, *rest in parts])


def _finish(sampled: Tensor, inputs: Inputs, steps: int) -> Tensor:
    brain, bone, lesion = inputs.rois
    band = torch.maximum(border(brain), border(bone)) * (1 - largest_within(lesion, LESION_REACH))
    box = _box(band)
    nearness = torch.where(bone > 0, BONE_WEIGHT, 1.0)
    images = (sampled, inputs.anatomy, inputs.companion, band, nearness)
    image = sampled.clone()
    image[box] = _descended(steps, *(each[box] for each in images))
    return image


def _descended(
    steps: int, sampled: Tensor, anatomy: Tensor, companion: Tensor, band: Tensor, weight: Tensor
) -> Tensor:
    limit = torch.maximum(gradient_magnitude(anatomy), gradient_magnitude(companion))
    steepest = 2 * (BONE_WEIGHT + SEAM_WEIGHT * STEEPEST)
    root = math.sqrt(2 / steepest)
    momentum = (1 - root) / (1 + root)
    image, ahead = sampled, sampled
    for _ in range(steps):
        slope = _seam_slope(ahead, limit, band) + 2 * weight * (ahead - sampled)
        moved = (ahead - slope / steepest).clamp(0, 1)
        image, ahead = moved, moved + momentum * (moved - image)
    return image


def _box(band: Tensor) -> tuple[slice, ...]:
    """The part of the images that the band's slopes read or change: as many voxels farther, to either side, as a
    derivative of a Gaussian is wide. Elsewhere F stays as it was sampled.
    """
    box = [slice(None), slice(None)]
    for axis in range(2, band.ndim):
        others = [other for other in range(band.ndim) if other != axis]
        places = band.amax(dim=others).nonzero().flatten().tolist() or [0]
        box.append(slice(max(0, places[0] - MARGIN), places[-1] + MARGIN + 1))
    return tuple(box)


def _seam_slope(image: Tensor, limit: Tensor, band: Tensor) -> Tensor:
    """∇ of the seam term by F."""
    with torch.enable_grad():
        point = image.detach().requires_grad_()
        beyond = (gradient_magnitude(point) - limit).clamp_min(0)
        (slope,) = torch.autograd.grad(SEAM_WEIGHT * (band * beyond.square()).sum(), point)
    return slope

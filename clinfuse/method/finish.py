"""The finish: of all images near what was sampled the one without borders that neither source has, and with the CT's
own greys in bone wherever they nearly were.

A seam of a third of a grey level asks for more exactness than a small network has on images it never saw, and bone
beyond the CT's window is one grey level. So sampling ends with the F that minimises

    Σ w·(F − F₀)² + 2τ·Σ_bone w·|F − I_C| + μ·Σ_band max(0, |∇F| − max(|∇I_M|, |∇I_C|))²

F₀ what was sampled, the band one voxel to either side of the borders of brain and bone. It needs no network. In bone
away from the band its answer is soft thresholding: F is the CT where F₀ was within τ of it, and elsewhere comes nearer
by τ, so that it has no steps. The sum is convex and its smooth part's slope is bounded, so that a few steps of
accelerated descent are near its one answer, and last bits of F₀ do not grow: the same image, alone or in a batch.

References: Beck and Teboulle, SIAM J. Imaging Sci. 2(1), 2009 (descent with the term of τ taken exactly); Donoho, IEEE
Trans. Inf. Theory 41(3), 1995 (soft thresholding); Nesterov, Introductory Lectures on Convex Optimization, 2004, scheme
2.2.11 (constant momentum).
Legend: B batch; *S two or three spatial axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
NEAR = 6 / 255
"""τ."""
STEEPEST = math.exp(-1) / SIGMA**2
"""Largest share of an image's square that its gradient's square can have, in any number of dimensions."""
LESION_REACH = 6
"""Voxels about a lesion that stay as sampled: what guidance did there is not the finish's to undo."""
MARGIN = 6
"""Voxels about the band that its slopes can read or change: twice a window's half width, and a little more."""
AT_ONCE = 4
"""Samples finished together, so that memory does not grow with the batch."""


class Task(NamedTuple):
    """What the finish of a batch works on, (B, 1, *S) each.

    Attributes:
        sampled: F₀. anatomy, companion: I_M, I_C.
        band: where borders count. weight: w. near: τ in bone, 0 elsewhere.
    """

    sampled: Tensor
    anatomy: Tensor
    companion: Tensor
    band: Tensor
    weight: Tensor
    near: Tensor


def finished(sampled: Tensor, inputs: Inputs, steps: int = STEPS) -> Tensor:
    """F (B, 1, *S) in [0, 1] for F₀ of that shape and range; 0 steps change nothing."""
    if steps == 0:
        return sampled
    parts = zip(*(whole.split(AT_ONCE) for whole in (sampled, *inputs)), strict=True)
    return torch.cat([_finish(one, Inputs(*rest), steps) for one, *rest in parts])


def _finish(sampled: Tensor, inputs: Inputs, steps: int) -> Tensor:
    brain, bone, lesion = inputs.rois
    free = 1 - largest_within(lesion, LESION_REACH)
    band = torch.maximum(border(brain), border(bone)) * free
    near = NEAR * bone * free
    box = _box(torch.maximum(band, near))
    weight = torch.where(bone > 0, BONE_WEIGHT, 1.0)
    whole = Task(sampled, inputs.anatomy, inputs.companion, band, weight, near)
    image = sampled.clone()
    image[box] = _descended(Task(*(each[box] for each in whole)), steps)
    return image


def _descended(task: Task, steps: int) -> Tensor:
    limit = torch.maximum(gradient_magnitude(task.anatomy), gradient_magnitude(task.companion))
    steepest = 2 * (BONE_WEIGHT + SEAM_WEIGHT * STEEPEST)
    root = math.sqrt(2 / steepest)
    momentum = (1 - root) / (1 + root)
    image = ahead = _nearer(task.sampled, task.companion, task.near)
    for _ in range(steps):
        slope = _seam_slope(ahead, limit, task.band) + 2 * task.weight * (ahead - task.sampled)
        moved = ahead - slope / steepest
        moved = _nearer(moved, task.companion, 2 * task.weight * task.near / steepest).clamp(0, 1)
        image, ahead = moved, moved + momentum * (moved - image)
    return image


def _nearer(image: Tensor, source: Tensor, by: Tensor) -> Tensor:
    """The image brought nearer to the source by that much, or to it: soft thresholding of their difference."""
    gap = image - source
    return torch.where(by > 0, source + gap.sign() * (gap.abs() - by).clamp_min(0), image)


def _box(changed: Tensor) -> tuple[slice, ...]:
    """The part of the images that the finish reads or changes: where it has a term, and as many voxels farther, to
    either side, as a derivative of a Gaussian is wide. Elsewhere F stays as it was sampled.
    """
    box = [slice(None), slice(None)]
    for axis in range(2, changed.ndim):
        others = [other for other in range(changed.ndim) if other != axis]
        places = changed.amax(dim=others).nonzero().flatten().tolist() or [0]
        box.append(slice(max(0, places[0] - MARGIN), places[-1] + MARGIN + 1))
    return tuple(box)


def _seam_slope(image: Tensor, limit: Tensor, band: Tensor) -> Tensor:
    """∇ of the seam term by F."""
    with torch.enable_grad():
        point = image.detach().requires_grad_()
        beyond = (gradient_magnitude(point) - limit).clamp_min(0)
        (slope,) = torch.autograd.grad(SEAM_WEIGHT * (band * beyond.square()).sum(), point)
    return slope

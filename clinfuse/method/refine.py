"""The refined prior: the fusion prior after descent on the measures themselves, per image, the denoiser's target.

No fixed composition is good at all measures together. A few descent steps on F itself, from the fusion prior, on the
ROI terms of L_ROI (Eq. 2), an intensity term and the seam penalty give MRI in the brain, CT in the bone to the grey
level, and few borders that neither source has. Too slow for use, and last bits of its input grow in it; so it is done
offline, and the denoiser learns to give it at once.

Legend: B batch; *S two or three spatial axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import Tensor

from clinfuse.method.filters import gaussian_blur, largest_within
from clinfuse.method.inputs import Inputs
from clinfuse.method.prior import FINDING_GREY, compose, look
from clinfuse.method.roi_loss import RoiWeights, border_share, held
from clinfuse.method.seam_loss import gradient_magnitude
from clinfuse.method.ssim import C1, C2, RADIUS, SIGMA, masked_mean

STEPS = 24
RATE = 0.06
SEAM_WEIGHT = 24.0
BRAIN_WEIGHT, BONE_WEIGHT = 2.0, 1.25
"""The seam term draws F towards CT at the brain's border alone, where few of its voxels lie; the mean over all of them
must count for more than the bone's to hold it."""
INTENSITY_WEIGHT = 5.0
"""Of the intensity term beside 1 − SSIM: with less, F leaves the MRI's greys at the cortex, to look more like it in the
windows that reach into bone."""
OUTSIDE_WEIGHT = 4.0
"""With less, the scalp beside bone is given up for what bone and seam gain by it."""
SMOOTH = 2 / 255
EPSILON = 0.01


@dataclass(frozen=True)
class Wanted:
    """One region's source with what SSIM needs of it, computed once.

    Attributes:
        image, mask: (B, 1, *S).
        mean, variance: (B, 1, *S) under the SSIM window.
    """

    image: Tensor
    mask: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor, mask: Tensor) -> Wanted:
        """From image and mask."""
        mean, square = gaussian_blur(torch.cat([image, image**2], dim=1), SIGMA, RADIUS).split(1, dim=1)
        return cls(image, mask, mean, square - mean**2)

    def losses(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """1 − SSIM and mean |F − I| (smoothed near 0) of F (B, 1, *S), both under the mask, (B,) each."""
        moments = torch.cat([fused, fused**2, fused * self.image], dim=1)
        mean, square, cross = gaussian_blur(moments, SIGMA, RADIUS).split(1, dim=1)
        variance = square - mean**2
        luminance = (2 * mean * self.mean + C1) / (mean**2 + self.mean**2 + C1)
        ssim = luminance * (2 * (cross - mean * self.mean) + C2) / (variance + self.variance + C2)
        return masked_mean(1 - ssim, self.mask), masked_mean(distance(fused, self.image), self.mask)


@dataclass(frozen=True)
class Task:
    """The loss L(F) of a batch.

    Attributes:
        anatomy, companion: what brain and bone should show; in the brain the companion's findings stay painted in.
        limit: (B, 1, *S) gradient magnitude that a source has.
        band: (B, 1, *S) one voxel to either side of the ROIs' borders.
        outside: (B, 1, *S) neither brain nor bone; there F stays near what it was.
        share: (B,) how much of its gradient either region's term keeps in the other, see `border_share`.
    """

    anatomy: Wanted
    companion: Wanted
    limit: Tensor
    band: Tensor
    outside: Tensor
    share: Tensor

    @classmethod
    def of(cls, inputs: Inputs, painted: Tensor) -> Task:
        """From a batch and its anatomy image with findings painted in, (B, 1, *S)."""
        pair = (gradient_magnitude(inputs.anatomy), gradient_magnitude(inputs.companion))
        brain, bone, _ = inputs.rois
        return cls(
            anatomy=Wanted.of(painted, brain),
            companion=Wanted.of(inputs.companion, bone),
            limit=torch.maximum(*pair),
            band=torch.maximum(border(brain), border(bone)),
            outside=(1 - brain) * (1 - bone),
            share=border_share(inputs.ct),
        )

    def loss(self, fused: Tensor, start: Tensor, weights: RoiWeights) -> Tensor:
        """L(F), (B,): α·L_brain + β·L_bone + intensity terms + seam penalty, F and its start (B, 1, *S)."""
        a, c = self.anatomy, self.companion
        brain, brain_gap = a.losses(held(fused, c.mask, self.share))
        bone, bone_gap = c.losses(held(fused, a.mask, self.share))
        total = weights.alpha * BRAIN_WEIGHT * (brain + INTENSITY_WEIGHT * brain_gap)
        total = total + weights.beta * BONE_WEIGHT * (bone + INTENSITY_WEIGHT * bone_gap)
        moved = (distance(fused, start) * self.outside).flatten(1).mean(dim=1)
        beyond = (gradient_magnitude(fused) - self.limit).clamp_min(0)
        excess = beyond * beyond / (beyond + SMOOTH)
        return total + OUTSIDE_WEIGHT * moved + SEAM_WEIGHT * masked_mean(excess, self.band)


def refined_prior(
    inputs: Inputs, steps: int = STEPS, start: Tensor | None = None, grey: float = FINDING_GREY
) -> Tensor:
    """The fusion prior after so many descent steps (Adam, rate 0.06 falling as a cosine) on `Task.loss`.

    Args:
        inputs, grey: as of `fusion_prior`.
        steps: 0 gives the start.
        start: (B, 1, *S) in [0, 1] to begin with instead of the fusion prior.

    Returns:
        (B, 1, *S) in [0, 1].

    Reference: proposal, Eq. 2; Adam: Kingma and Ba, ICLR 2015.
    """
    with torch.no_grad():
        sources = look(inputs, grey)
        task = Task.of(inputs, sources.painted)
        start = compose(sources, inputs.vector) if start is None else start
    return _descend(task, start, RoiWeights.from_vector(inputs.vector), steps)


def _descend(task: Task, start: Tensor, weights: RoiWeights, steps: int) -> Tensor:
    """F (B, 1, *S) in [0, 1] from a start after so many steps; every sample on its own loss."""
    with torch.enable_grad():
        image = start.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([image], lr=RATE, betas=(0.8, 0.95), eps=EPSILON)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            (gradient,) = torch.autograd.grad(task.loss(image, start, weights).sum(), image)
            image.grad = gradient * image[0].numel()  # of order 1 at every size
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
    return image.detach()


def distance(image: Tensor, other: Tensor) -> Tensor:
    """|image − other|, quadratic below two grey levels, so that descent ends instead of swinging about 0."""
    return tf.smooth_l1_loss(image, other.expand_as(image), reduction="none", beta=SMOOTH)


def border(mask: Tensor) -> Tensor:
    """One voxel to either side of a mask's border, (B, 1, *S) in {0, 1}."""
    return largest_within(mask, 1) + largest_within(-mask, 1)

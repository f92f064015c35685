"""The three training objectives: lesion head, denoiser (Eq. 3) and student (Section 3.5).

A batch is a dict of float32 tensors (B, 1, *S): anatomy, companion, aligned (the companion without its misregistration
where it is known, else the companion), brain, bone, lesion; "spacing" (B, d) in mm; and "ct" (B,), 1 where the
companion is a CT and 0 for SPECT and PET. Each factory returns loss(module, batch, generator) → (scalar, logs);
`module` may be wrapped for distributed training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clinfuse.method.denoiser import Denoiser, Estimate, to_image, to_latent
from clinfuse.method.diffusion import add_noise, alphas_cumprod, make_scheduler
from clinfuse.method.inputs import Inputs
from clinfuse.method.jitter import apply, draw
from clinfuse.method.lesion_head import LesionHead, segmentation_loss
from clinfuse.method.prior import fusion_prior
from clinfuse.method.refine import refined_prior
from clinfuse.method.roi_loss import (
    RoiTerms,
    RoiWeights,
    border_share,
    composite,
    roi_reference,
    roi_terms,
)
from clinfuse.method.seam_loss import seam_loss
from clinfuse.training.config import TrainConfig
from clinfuse.training.spacing import by_spacing

Batch = dict[str, Tensor]
LossFn = Callable[[nn.Module, Batch, torch.Generator], tuple[Tensor, dict[str, float]]]
SNR_RANGE = (0.2, 5.0)
COMPANION_SHARE = 0.1
HUBER = 0.01
"""Below this the student's gap (Haar units) counts by its square, above it by its size."""


def lesion_head_loss(config: TrainConfig) -> LossFn:
    """Segmentation of MRI, fusion prior and companion, one of the three drawn per sample.

    A tenth of the samples are the companion, as most lesions do not show there. Companions are a little off, as in use.
    """

    def loss(module: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        vector = draw_vectors(len(batch["anatomy"]), generator).to(batch["anatomy"].device)
        companion = jittered_companion(batch, config, generator)
        fused = fusion_prior(inputs_of(batch, companion, vector), config.denoiser.finding_grey)
        choice = torch.rand((len(fused), 1, *[1] * (fused.ndim - 2)), generator=generator).to(fused.device)
        image = torch.where(choice < (1 - COMPANION_SHARE) / 2, batch["anatomy"], fused)
        image = torch.where(choice < 1 - COMPANION_SHARE, image, companion)
        gamma = torch.exp(0.3 * torch.randn(choice.shape, generator=generator)).to(fused)
        value = segmentation_loss(module(image.clamp_min(1e-4) ** gamma), batch["lesion"])
        return value, {"segmentation": float(value.detach())}

    return loss


def denoiser_loss(config: TrainConfig, lesion_head: LesionHead | None) -> LossFn:
    """Eq. 3: E‖ε − ε_θ‖² + λ_roi·E[L_ROI], with the log-variance likelihood and the residual penalty.

    ‖ε − ε̂‖² equals SNR·‖x₀ − x̂₀‖²; the weight is held within [0.2, 5] (min-SNR, Hang et al., ICCV 2023), and L_ROI
    counts with (1 + 3ᾱ_t)/4, so that very noisy t do not dominate; a seam penalty stands beside it.
    """
    alpha_bars = alphas_cumprod(config.diffusion)
    levels = config.denoiser.levels

    def loss(module: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = batch["anatomy"].device
        vector = draw_vectors(len(batch["anatomy"]), generator).to(device)
        grey = config.denoiser.finding_grey
        target = refined_prior(inputs_of(batch, batch["aligned"], vector), config.refine_steps, grey=grey)
        inputs = inputs_of(batch, jittered_companion(batch, config, generator), vector)
        x_0 = to_latent(target, levels)
        timesteps = torch.randint(config.diffusion.train_timesteps, (len(x_0),), generator=generator)
        alpha_bar = alpha_bars[timesteps].to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        estimate = module(add_noise(x_0, noise, alpha_bar), timesteps.to(device), inputs)
        squared = (estimate.x_0 - x_0).square()
        snr = (alpha_bar / (1 - alpha_bar)).clamp(*SNR_RANGE)
        simple = (snr * squared.flatten(1).mean(dim=1)).mean()
        total = simple + config.residual_weight * estimate.residual.square().mean()
        total = total + config.variance_weight * variance_likelihood(estimate, squared)
        logs = {"simple": float(simple.detach())}
        if config.roi_weight:
            roi, terms = _roi(estimate, batch, vector, config, lesion_head)
            total = total + config.roi_weight * ((1 + 3 * alpha_bar) / 4 * roi).mean()
            logs |= terms
        return total, logs | {"loss": float(total.detach())}

    return loss


def student_loss(config: TrainConfig, teacher: Denoiser, lesion_head: LesionHead | None) -> LossFn:
    """Distillation of the guided teacher into few steps without gradients at inference (Section 3.5).

    The batch also holds "teacher" (B, 1, *S), the guided teacher's F after `refine_steps` (clinfuse.training.distill),
    and "vector" (B, 6). At each of the student's own timesteps its estimate must equal that (consistency to the
    trajectory's end, Song et al., ICML 2023), by the pseudo-Huber distance; L_ROI amortises guidance; and the
    score-distillation refinement pulls the estimate, noised again, to the teacher's own denoising.
    """
    alpha_bars = alphas_cumprod(config.diffusion)
    levels = config.denoiser.levels
    own_steps = torch.as_tensor(make_scheduler(config.diffusion, config.student_steps).timesteps)

    def loss(module: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = batch["anatomy"].device
        inputs = inputs_of(batch, jittered_companion(batch, config, generator), batch["vector"])
        x_0 = to_latent(batch["teacher"], levels)
        timesteps = own_steps[torch.randint(len(own_steps), (len(x_0),), generator=generator)]
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        x_t = add_noise(x_0, noise, alpha_bars[timesteps].to(device))
        estimate = module(x_t, timesteps.to(device), inputs)
        squared = (estimate.x_0 - x_0).square()
        consistency = pseudo_huber(squared).mean()
        total = consistency + config.variance_weight * variance_likelihood(estimate, squared)
        logs = {"consistency": float(consistency.detach())}
        if config.roi_weight:
            roi, terms = _roi(estimate, batch, batch["vector"], config, lesion_head)
            total = total + config.roi_weight * roi.mean()
            logs |= terms
        if config.score_weight:
            total = total + config.score_weight * score_refinement(
                estimate, inputs, teacher, alpha_bars, generator
            )
        return total, logs | {"loss": float(total.detach())}

    return loss


def pseudo_huber(squared: Tensor) -> Tensor:
    """√(d² + c²) − c of squared gaps d² of any shape, c = `HUBER`.

    By squares, the few large gaps at moved bone would outweigh the many small ones inside the brain.

    Reference: Song, Dhariwal, Improved techniques for training consistency models, ICLR 2024, Section 3.3.
    """
    return (squared + HUBER**2).sqrt() - HUBER


def score_refinement(
    estimate: Estimate, inputs: Inputs, teacher: Denoiser, alpha_bars: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared gap between the student's estimate and the teacher's denoising of it, noised at a random level.

    Reference: score distillation, Poole et al., DreamFusion, ICLR 2023, Eq. 3, in its x₀ form.
    """
    x_0 = estimate.x_0
    timesteps = torch.randint(len(alpha_bars) // 2, (len(x_0),), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    with torch.no_grad():
        x_t = add_noise(x_0, noise, alpha_bars[timesteps].to(x_0))
        wanted = teacher(x_t, timesteps.to(x_0.device), inputs).x_0
    return (x_0 - wanted).square().mean()


def variance_likelihood(estimate: Estimate, squared: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of the error, which trains the log variance alone (Nix, Weigend 1994)."""
    return 0.5 * (squared.detach() * torch.exp(-estimate.log_variance) + estimate.log_variance).mean()


def draw_vectors(count: int, generator: torch.Generator) -> Tensor:
    """Random preset vectors (count, 6), uniform on both simplices, so that one model serves every preset."""
    exponential = -torch.rand((count, 2, 3), generator=generator).clamp_min(1e-6).log()
    return (exponential / exponential.sum(dim=2, keepdim=True)).flatten(1)


def jittered_companion(batch: Batch, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The companion as seen in the clinic: a share of the samples warped by a drawn jitter, the rest aligned.

    What is stored as the companion is not taken: in the cohort it is further off than alignment leaves it.
    """
    if config.jitter_share == 0:
        return batch["aligned"]
    warped = []
    for i in range(len(batch["aligned"])):
        still = float(torch.rand((), generator=generator)) >= config.jitter_share
        warp = draw(config.jitter, generator, config.spatial_dims)
        spacing = tuple(batch["spacing"][i].tolist())
        warped.append(batch["aligned"][i] if still else apply(warp, batch["aligned"][i], spacing))
    return torch.stack(warped)


def masks(batch: Batch) -> Tensor:
    """(B, 3, *S): brain, bone, lesion."""
    return torch.cat([batch["brain"], batch["bone"], batch["lesion"]], dim=1)


def inputs_of(batch: Batch, companion: Tensor, vector: Tensor) -> Inputs:
    """A batch with its companion (B, 1, *S), aligned or as the network sees it, for preset vectors (B, 6)."""
    return Inputs(batch["anatomy"], companion, masks(batch), vector, batch["ct"])


def _roi(
    estimate: Estimate, batch: Batch, vector: Tensor, config: TrainConfig, lesion_head: LesionHead | None
) -> tuple[Tensor, dict[str, float]]:
    fused = to_image(estimate.x_0, config.denoiser.levels).clamp(-0.5, 1.5)

    def terms_of(part: Batch) -> Batch:
        spacing = tuple(part["spacing"][0].tolist())
        reference = roi_reference(
            part["anatomy"], part["aligned"], masks(part), spacing, config.tau_mm, config.border
        )
        return vars(roi_terms(part["fused"], reference, lesion_head, share=border_share(part["ct"])))

    terms = RoiTerms(**by_spacing({**batch, "fused": fused}, terms_of))
    seam = seam_loss(fused, batch["anatomy"], batch["aligned"])
    value = composite(terms, RoiWeights.from_vector(vector)) + config.seam_weight * seam
    return value, terms.means() | {"seam": float(seam.detach().mean())}

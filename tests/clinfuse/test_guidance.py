"""What guides a reverse step: each term, the border terms, uncertainty, and the exact and the cheap gradient."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from guided_model import (
    PRESET,
    STEPS,
    denoiser,
    guide_for,
    lesion_head,
    loss_of,
    made_inputs,
    reference_of,
    run,
)
from torch import Tensor

import clinfuse
from clinfuse.case import Case
from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import to_image
from clinfuse.method.diffusion import DiffusionConfig, make_scheduler, noise_like
from clinfuse.method.generalized_surface import surface_border_loss
from clinfuse.method.guidance import CHEAP_SHARE, REFERENCE_STEPS, GuidanceConfig, guided_step
from clinfuse.method.roi_loss import (
    BORDERS,
    RoiWeights,
    border_share,
    composite,
    roi_terms,
)
from clinfuse.method.sampler import sample
from clinfuse.method.surface_loss import hd95_loss, lesion_target
from clinfuse.method.uncertainty import effective_strength
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import Preset
from clinfuse.training import recipe

RELEASED = Path(clinfuse.__file__).parent / "released"


def test_each_term_moves_the_others_region_by_its_share_alone() -> None:
    reference = guide_for(made_inputs(), PRESET).reference
    brain, bone = torch.zeros_like(reference.brain), torch.zeros_like(reference.bone)
    brain[..., :8], bone[..., 8:] = 1, 1
    reference = replace(reference, brain=brain, bone=bone)
    fused = torch.rand(brain.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ct = torch.tensor([1.0, 0.0])
    share = border_share(ct)
    assert share.tolist() == [0.0, 1.0], "none in a CT, all of it in SPECT and PET"
    plain, apart = (roi_terms(fused, reference, None, share=given) for given in (None, share))
    for name, own, other in (("brain", brain, bone), ("bone", bone, brain)):
        assert torch.equal(getattr(plain, name), getattr(apart, name))
        (gradient,) = torch.autograd.grad(getattr(apart, name).sum(), fused, retain_graph=True)
        (whole,) = torch.autograd.grad(getattr(plain, name).sum(), fused, retain_graph=True)
        torch.testing.assert_close(gradient * own, whole * own)
        torch.testing.assert_close(gradient * other, share.view(-1, 1, 1, 1) * whole * other)
        assert bool(((whole * other).abs().amax(dim=(1, 2, 3)) > 0).all())


def test_effective_strength_follows_equation_4() -> None:
    uncertainty = torch.tensor([0.0, 0.25, 1.0])
    expected = 0.8 * torch.sigmoid(3.0 * uncertainty)
    torch.testing.assert_close(effective_strength(uncertainty, 0.8, 3.0), expected)
    torch.testing.assert_close(effective_strength(uncertainty, 0.8, 0.0), torch.full((3,), 0.4))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_other_border_term_changes_that_term_alone(dims: int) -> None:
    inputs, head = made_inputs(dims), lesion_head(dims)
    found, slopes = {}, {}
    for border in BORDERS:
        fused = inputs.anatomy.clone().requires_grad_()
        terms = roi_terms(fused, reference_of(inputs, border=border), head)
        (slopes[border],) = torch.autograd.grad(terms.hd.sum(), fused)
        found[border] = terms
    one, other = (found[border] for border in BORDERS)
    for name in ("brain", "bone", "dice", "nsd", "lesion_present"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert bool((one.hd - other.hd).abs().min() > 1e-3)
    for slope in slopes.values():
        assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0


def test_guidance_takes_the_border_term_that_is_asked_for(tiny_case: Case) -> None:
    """By the released model: alone, either term is lowered by its own guidance; with λ₃ = 0 both guide alike."""
    pipeline, slab = FusionPipeline.from_pretrained(RELEASED), tiny_case.slices(5, 7)
    alone = PRESET.changed(alpha=0.0, beta=0.0, lambda_dice=0.0, lambda_nsd=0.0, lambda_hd=1.0)
    target = lesion_target(torch.from_numpy(slab.lesion)[:, None].float(), slab.spacing[1:], alone.tau_mm)

    def fused(preset: Preset, border: str | None) -> Tensor:
        guidance = GuidanceConfig(border=border, gradient="cheap") if border else None
        done = pipeline.sample_member(slab, 0, preset, steps=4, guided=border is not None, guidance=guidance)
        return torch.from_numpy(done.fused)[:, None]

    def lost(image: Tensor) -> list[float]:
        assert pipeline.lesion_head is not None
        seen = pipeline.lesion_head.probability(image)
        return [float(term(seen, target).mean()) for term in (hd95_loss, surface_border_loss)]

    plain = lost(fused(alone, None))
    for place, border in enumerate(BORDERS):
        assert lost(fused(alone, border))[place] < plain[place]
    without = [fused(PRESET.changed(lambda_hd=0.0), border) for border in BORDERS]
    torch.testing.assert_close(*without, atol=1e-5, rtol=0)


def test_an_unknown_border_term_is_refused() -> None:
    for asked in (GuidanceConfig, partial(recipe, "cpu-debug"), partial(reference_of, made_inputs())):
        with pytest.raises(ConfigError, match="hd95 or surface"):
            asked(border="hausdorff")


def test_uncertainty_guidance_lowers_the_predicted_uncertainty() -> None:
    model, inputs = denoiser(), made_inputs()
    doubts: dict[float, float] = {}
    for eta_u in (0.0, 2.0):
        guide = guide_for(inputs, PRESET.changed(eta=0.0, eta_u=eta_u))
        seen: list[float] = []
        sample(
            [model],
            inputs,
            diffusion=DiffusionConfig(),
            steps=20,
            generators=[torch.Generator().manual_seed(i) for i in range(2)],
            guide=guide,
            callback=lambda _i, _n, step, seen=seen: seen.append(float(step.uncertainty.mean())),
        )
        doubts[eta_u] = seen[-1]
    assert doubts[2.0] < doubts[0.0]


@pytest.mark.parametrize(
    ("eta", "eta_u", "passes"), [(0.02, 1.0, 2), (0.02, 0.0, 1), (0.0, 1.0, 1), (0.0, 0.0, 0)]
)
def test_only_what_counts_goes_back_through_the_network(eta: float, eta_u: float, passes: int) -> None:
    model, inputs, seen = denoiser(), made_inputs(), list[None]()
    hook = model.unet.register_full_backward_hook(lambda *_: seen.append(None))
    guide = guide_for(inputs, PRESET.changed(eta=eta, eta_u=eta_u))
    encoded, x_t = model.encode(inputs), torch.randn(2, 4, 8, 8)
    step = guided_step([model], x_t, torch.full((2,), 500), [encoded], guide)
    hook.remove()
    assert len(seen) == passes and bool(step.change.any()) == (passes > 0)


def test_cheap_gradient_points_the_same_way() -> None:
    model, inputs = denoiser(), made_inputs()
    encoded = [model.encode(inputs)]
    x_t = torch.randn(encoded[0].z_prior.shape, generator=torch.Generator().manual_seed(2))
    steps = [
        guided_step([model], x_t, torch.full((2,), 40), encoded, guide_for(inputs, clip=1e6, gradient=kind))
        for kind in ("exact", "cheap")
    ]
    exact, cheap = steps[0].change, steps[1].carried
    assert not steps[0].carried.any() and not steps[1].change.any()
    assert float(torch.nn.functional.cosine_similarity(exact.flatten(), cheap.flatten(), dim=0)) > 0.8


def test_the_cheap_gradient_is_carried_through_an_unguided_path() -> None:
    """Against Algorithm 1 written out: descent of L_ROI at x̂₀, x_t left alone, F = x₀ less all that was changed."""
    model, inputs = denoiser(), made_inputs()
    preset = PRESET.changed(kappa=0.0)
    guide = guide_for(inputs, preset, clip=1e6, gradient="cheap")
    scheduler = make_scheduler(DiffusionConfig(), STEPS)
    encoded = model.encode(inputs)
    x_t = noise_like(tuple(encoded.z_prior.shape), [torch.Generator().manual_seed(i) for i in range(2)])
    carried, rounds = torch.zeros_like(x_t), 5  # 10 / 4 of η, in twice as many parts
    for t in scheduler.timesteps:
        estimate = model.denoise(x_t, torch.full((2,), int(t)), encoded).x_0
        for _ in range(rounds):
            x_0 = (estimate - carried).requires_grad_()
            terms = roi_terms(to_image(x_0, 1), guide.reference, guide.lesion_head)
            loss = composite(terms, RoiWeights.of(preset)).sum() * x_t[0].numel()
            (gradient,) = torch.autograd.grad(loss, x_0)
            step = REFERENCE_STEPS / STEPS / rounds * CHEAP_SHARE * preset.eta / 2
            carried = carried + step * gradient
        x_t = scheduler.step(estimate, t, x_t).prev_sample
    expected = to_image(x_t - carried, 1).clamp(0, 1)
    done = run(model, inputs, guide)
    torch.testing.assert_close(done.fused, expected, atol=1e-5, rtol=0)
    assert loss_of(done.fused, guide) < loss_of(run(model, inputs, None).fused, guide)

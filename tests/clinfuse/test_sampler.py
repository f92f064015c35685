"""Algorithm 1: guidance lowers L_ROI on a real pair; its special cases are exact; it never diverges."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from clinfuse_prep.cohort import make_cohort
from clinfuse_prep.prepare import prepare_pair
from PIL import Image
from torch import Tensor

import clinfuse
from clinfuse.case import Case
from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import Denoiser, DenoiserConfig, to_image
from clinfuse.method.diffusion import SAMPLERS, DiffusionConfig, make_scheduler, noise_like
from clinfuse.method.generalized_surface import surface_border_loss
from clinfuse.method.guidance import CHEAP_SHARE, REFERENCE_STEPS, GuidanceConfig, Guide, guided_step
from clinfuse.method.inputs import Inputs
from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig
from clinfuse.method.roi_loss import (
    BORDERS,
    RoiReference,
    RoiWeights,
    border_share,
    composite,
    roi_reference,
    roi_terms,
)
from clinfuse.method.sampler import Sampled, sample
from clinfuse.method.surface_loss import hd95_loss, lesion_target
from clinfuse.method.uncertainty import effective_strength
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import Preset
from clinfuse.training import recipe

PRESET = Preset(name="test", eta=0.02, eta_u=0.0, kappa=4.0, steps=4)
STEPS = 4
RELEASED = Path(clinfuse.__file__).parent / "released"


@pytest.fixture(scope="module")
def lesion_slab(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two slices through the tumour of a simulated patient that the released model has not seen."""
    folder = make_cohort(tmp_path_factory.mktemp("cohort"), patients=1, spacing_mm=2.0, seed=5)[0]
    mri, ct, brain, bone, lesion = (
        folder / f"{n}.nii.gz" for n in ("mr", "ct_aligned", "brain", "bone", "lesion")
    )
    case = prepare_pair(mri, ct, brain=brain, bone=bone, lesion=lesion)
    middle = int(np.argmax(case.lesion.sum(axis=(1, 2))))
    return case.slices(middle - 1, middle + 1)


def denoiser(**changes: object) -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(**{"channels": (8, 16), "encoder_channels": 2, "anchor_std": 0.2, **changes})  # type: ignore[arg-type]
    model = Denoiser(config, DiffusionConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def made_inputs(dims: int = 2, batch: int = 2, size: int = 16) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand((2, batch, 1, *[size] * dims), generator=generator)
    masks = torch.zeros(batch, 3, *[size] * dims)
    masks[:, 0, ..., 2:8] = 1
    masks[:, 1, ..., 10:14] = 1
    masks[:, 2, ..., 4:6, 4:6] = 1
    vector = torch.tensor([PRESET.vector]).expand(batch, -1)
    return Inputs(images[0], images[1], masks, vector, torch.ones(batch))


def lesion_head(dims: int = 2) -> LesionHead:
    torch.manual_seed(1)
    return LesionHead(LesionHeadConfig(spatial_dims=dims, channels=(4, 8))).freeze()


def reference_of(inputs: Inputs, tau_mm: float = 2.0, border: str = "hd95") -> RoiReference:
    spacing = (1.0, 1.5, 2.0)[-(inputs.anatomy.ndim - 2) :]
    return roi_reference(inputs.anatomy, inputs.companion, inputs.masks, spacing, tau_mm, border)


def guide_for(inputs: Inputs, preset: Preset = PRESET, **config: object) -> Guide:
    return Guide(
        reference=reference_of(inputs),
        lesion_head=lesion_head(inputs.anatomy.ndim - 2),
        preset=preset,
        head_mask=torch.ones_like(inputs.anatomy),
        config=GuidanceConfig(**config),  # type: ignore[arg-type]
    )


def run(
    model: Denoiser,
    inputs: Inputs,
    guide: Guide | None,
    steps: int = STEPS,
    seed: int = 0,
    sampler: str = "ddim",
) -> Sampled:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(inputs.anatomy))]
    diffusion = DiffusionConfig(sampler=sampler)
    return sample([model], inputs, diffusion=diffusion, steps=steps, generators=generators, guide=guide)


def loss_of(fused: Tensor, guide: Guide) -> float:
    terms = roi_terms(fused, guide.reference, guide.lesion_head)
    return float(composite(terms, RoiWeights.of(guide.preset)).mean())


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


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_no_strength_is_the_unguided_sampler_exactly(sampler: str) -> None:
    model, inputs = denoiser(), made_inputs()
    guide = guide_for(inputs, PRESET.changed(eta=0.0, eta_u=0.0))
    guided, plain = run(model, inputs, guide, sampler=sampler), run(model, inputs, None, sampler=sampler)
    assert torch.equal(guided.fused, plain.fused)


def test_kappa_zero_is_half_the_strength_everywhere() -> None:
    """Eq. 4 at κ = 0, against Algorithm 1 written out with autograd and a step's share of a uniform η/2."""
    model, inputs = denoiser(), made_inputs()
    preset = PRESET.changed(kappa=0.0)
    guide = guide_for(inputs, preset, clip=1e6)
    scheduler = make_scheduler(DiffusionConfig(), STEPS)
    encoded = model.encode(inputs)
    x_t = noise_like(tuple(encoded.z_prior.shape), [torch.Generator().manual_seed(i) for i in range(2)])
    for t in scheduler.timesteps:
        x_t = x_t.detach().requires_grad_()
        estimate = model.denoise(x_t, torch.full((2,), int(t)), encoded)
        terms = roi_terms(to_image(estimate.x_0, 1), guide.reference, guide.lesion_head)
        loss = composite(terms, RoiWeights.of(preset)).sum() * x_t[0].numel()
        (gradient,) = torch.autograd.grad(loss, x_t)
        share = REFERENCE_STEPS / STEPS
        x_t = scheduler.step(estimate.x_0, t, x_t).prev_sample - share * preset.eta / 2 * gradient
    expected = to_image(x_t.detach(), 1).clamp(0, 1)
    torch.testing.assert_close(run(model, inputs, guide).fused, expected, atol=1e-5, rtol=0)


def test_effective_strength_follows_equation_4() -> None:
    uncertainty = torch.tensor([0.0, 0.25, 1.0])
    expected = 0.8 * torch.sigmoid(3.0 * uncertainty)
    torch.testing.assert_close(effective_strength(uncertainty, 0.8, 3.0), expected)
    torch.testing.assert_close(effective_strength(uncertainty, 0.8, 0.0), torch.full((3,), 0.4))


@pytest.mark.parametrize("dims", [2, 3])
def test_guidance_lowers_the_roi_loss(dims: int) -> None:
    model, inputs = denoiser(spatial_dims=dims), made_inputs(dims)
    guide = guide_for(inputs)
    assert loss_of(run(model, inputs, guide).fused, guide) < loss_of(run(model, inputs, None).fused, guide)


@pytest.mark.real
def test_guidance_lowers_the_roi_loss_on_a_real_pair(data_root: Path) -> None:
    folder = data_root / "aanlib" / "MRI-CT" / "case_28"
    images = [
        torch.from_numpy(np.asarray(Image.open(folder / kind / "28011.png").convert("L"), np.float32) / 255)
        for kind in ("MRI", "CT")
    ]
    anatomy, companion = (i[None, None] for i in images)
    bone = (companion > 0.75).float()
    brain = ((anatomy > 0.15) & (companion > 0.1) & (bone == 0)).float()
    masks = torch.cat([brain, bone, torch.zeros_like(bone)], dim=1)
    inputs = Inputs(anatomy, companion, masks, torch.tensor([PRESET.vector]), torch.ones(1))
    guide = guide_for(inputs, PRESET.changed(eta=0.05))
    model = denoiser()
    guided, plain = run(model, inputs, guide, steps=8), run(model, inputs, None, steps=8)
    assert loss_of(guided.fused, guide) < 0.98 * loss_of(plain.fused, guide)


def test_guidance_does_as_much_in_many_steps_as_in_few() -> None:
    model, inputs = denoiser(), made_inputs()
    guide = guide_for(inputs, PRESET.changed(eta=0.002))
    changes = [
        (run(model, inputs, guide, steps=n).fused - run(model, inputs, None, steps=n).fused).abs().mean()
        for n in (10, 20, 50)
    ]
    assert max(changes) < 2 * min(changes)


def test_so_it_does_in_the_released_model_which_hardly_trusts_x_t(lesion_slab: Case) -> None:
    pipeline = FusionPipeline.from_pretrained(RELEASED)
    assert pipeline.members[0].config.anchor_std == DenoiserConfig().anchor_std
    fused = [
        [pipeline.sample_member(lesion_slab, 0, "stroke", steps=n, guided=g).fused for g in (False, True)]
        for n in (10, 20, 50)
    ]
    changes = [float(np.abs(guided - plain).mean()) for plain, guided in fused]
    assert min(changes) > 1e-4
    assert max(changes) < 2 * min(changes)


def test_by_default_the_last_step_does_nearly_all_of_guidance() -> None:
    """A denoiser that trusts x_t as little as it does by default replaces what earlier steps changed."""
    model, inputs = denoiser(anchor_std=DenoiserConfig().anchor_std), made_inputs()
    preset = PRESET.changed(eta=0.05)
    plain = run(model, inputs, None, steps=10).fused
    whole, last = (
        run(model, inputs, guide_for(inputs, preset, start=start), steps=10).fused - plain
        for start in (0, 0.9)
    )
    assert float((whole - last).norm() / whole.norm()) < 0.3


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


@pytest.mark.parametrize(("eta", "told"), [(1.0, False), (10.0, True)])
def test_ten_times_a_preset_s_strength_stays_finite_and_warns(
    tiny_case: Case, eta: float, told: bool
) -> None:
    """The released model on a slab with a lesion, in few steps, which each take much of η."""
    pipeline = FusionPipeline.from_pretrained(RELEASED)
    preset = pipeline.presets["stroke"]
    preset = preset.changed(eta=eta * preset.eta)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = pipeline.sample_member(tiny_case.slices(4, 8), 0, preset, steps=2, guided=True)
    assert np.isfinite(done.fused).all()
    assert [str(w.message) for w in caught if "clipped" in str(w.message)] != [] if told else not caught


def test_far_too_strong_guidance_stays_finite_and_warns() -> None:
    model, inputs = denoiser(), made_inputs()
    guide = guide_for(inputs, PRESET.changed(eta=50.0, eta_u=50.0), clip=0.05)
    with pytest.warns(RuntimeWarning, match="clipped"):
        done = run(model, inputs, guide)
    assert bool(torch.isfinite(done.fused).all())


def test_a_gradient_that_is_not_finite_is_told_and_does_nothing() -> None:
    """NaN in the reference of sample 0: it stays unguided, sample 1 is guided as ever."""
    model, inputs = denoiser(), made_inputs()
    guide = guide_for(inputs)
    broken = guide.reference.anatomy.clone()
    broken[0] = torch.nan
    broken_guide = replace(guide, reference=replace(guide.reference, anatomy=broken))
    with pytest.warns(RuntimeWarning, match=r"not finite in 50\.0%"):
        done = run(model, inputs, broken_guide)
    torch.testing.assert_close(done.fused[1], run(model, inputs, guide).fused[1])
    torch.testing.assert_close(done.fused[0], run(model, inputs, None).fused[0])


def test_case_does_not_see_its_neighbours() -> None:
    model, inputs = denoiser(), made_inputs()
    alone = Inputs(*(part[:1] for part in inputs))
    together = run(model, inputs, guide_for(inputs)).fused[:1]
    torch.testing.assert_close(run(model, alone, guide_for(alone)).fused, together, atol=1e-5, rtol=0)


def test_members_are_averaged_and_disagree() -> None:
    inputs = made_inputs()
    first = denoiser()
    torch.manual_seed(9)
    second = denoiser()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    encoded = [first.encode(inputs), second.encode(inputs)]
    x_t = torch.randn(encoded[0].z_prior.shape, generator=torch.Generator().manual_seed(2))
    timesteps = torch.full((2,), 300)
    one = guided_step([first], x_t, timesteps, encoded[:1], guide_for(inputs))
    two = guided_step([first, second], x_t, timesteps, encoded, guide_for(inputs))
    other = guided_step([second], x_t, timesteps, encoded[1:], guide_for(inputs))
    torch.testing.assert_close(two.estimate.x_0, (one.estimate.x_0 + other.estimate.x_0) / 2)
    assert float(two.uncertainty.mean()) > min(float(one.uncertainty.mean()), float(other.uncertainty.mean()))

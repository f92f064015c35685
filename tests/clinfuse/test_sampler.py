"""Algorithm 1: guidance lowers L_ROI on a real pair; its special cases are exact; it never diverges."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clinfuse_prep.cohort import make_cohort
from clinfuse_prep.prepare import prepare_pair
from guided_model import (
    PRESET,
    STEPS,
    denoiser,
    guide_for,
    loss_of,
    made_inputs,
    run,
)
from PIL import Image

import clinfuse
from clinfuse.case import Case
from clinfuse.method.denoiser import DenoiserConfig, to_image
from clinfuse.method.diffusion import SAMPLERS, DiffusionConfig, make_scheduler, noise_like
from clinfuse.method.guidance import REFERENCE_STEPS, guided_step
from clinfuse.method.inputs import Inputs
from clinfuse.method.roi_loss import (
    RoiWeights,
    composite,
    roi_terms,
)
from clinfuse.pipeline import FusionPipeline

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

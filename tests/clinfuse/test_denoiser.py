"""The anchored denoiser: bounded by its sources, one code path for 2D and 3D, exact posterior mean."""

import pytest
import torch

from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import (
    Denoiser,
    DenoiserConfig,
    pad_to_multiple,
    to_image,
    to_latent,
)
from clinfuse.method.diffusion import DiffusionConfig, add_noise, estimate_from, implied_noise
from clinfuse.method.inputs import Inputs
from clinfuse.method.prior import fusion_prior

SMALL = {"channels": (8, 16), "encoder_channels": 2}


def inputs(dims: int, size: int = 16, batch: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 1, *[size] * dims)
    masks = (torch.rand((batch, 3, *[size] * dims), generator=generator) > 0.5).float()
    images = torch.rand((2, *shape), generator=generator)
    return Inputs(images[0], images[1], masks, torch.full((batch, 6), 1 / 3), torch.ones(batch))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("levels", [1, 2])
def test_untrained_estimate_is_the_fusion_prior(dims: int, levels: int) -> None:
    denoiser = Denoiser(
        DenoiserConfig(spatial_dims=dims, levels=levels, anchor_std=0.0, **SMALL), DiffusionConfig()
    )
    c = inputs(dims)
    z = denoiser.encode(c)
    x_t = torch.randn(z.z_prior.shape, generator=torch.Generator().manual_seed(1))
    estimate = denoiser.denoise(x_t, torch.tensor([999, 10]), z)
    prior = fusion_prior(c)
    torch.testing.assert_close(to_image(estimate.x_0, levels), prior, atol=1e-5, rtol=0)
    assert estimate.log_variance.shape == estimate.x_0.shape
    torch.testing.assert_close(to_image(to_latent(c.anatomy, levels), levels), c.anatomy)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_encoders_the_network_sees_the_images_alone(dims: int) -> None:
    sizes = {}
    for channels in (0, 2):
        config = DenoiserConfig(spatial_dims=dims, **{**SMALL, "encoder_channels": channels})
        denoiser, c = Denoiser(config, DiffusionConfig()), inputs(dims)
        z = denoiser.encode(c)
        sizes[channels] = z.features.shape[1]
        names = {name.split(".")[0] for name, _ in denoiser.named_parameters()}
        assert (names == {"unet"}) == (channels == 0)
        estimate = denoiser.denoise(torch.zeros_like(z.z_prior), torch.tensor([999, 10]), z)
        assert estimate.x_0.shape == z.z_prior.shape
    assert sizes[2] - sizes[0] == 2 * 2
    assert sizes[0] == 6 * 2**dims  # both images, the prior and three masks


def test_findings_are_painted_into_what_the_network_sees_and_its_prior_or_not_at_all() -> None:
    c = inputs(2, size=48)
    c.masks[:] = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    bleeding = c._replace(companion=(0.1 * c.companion).index_fill(3, torch.arange(20, 24), 0.5))
    seen = {
        grey: Denoiser(DenoiserConfig(finding_grey=grey, **SMALL), DiffusionConfig()).see(bleeding).sources
        for grey in (0.0, 0.85)
    }
    assert torch.equal(seen[0.0].painted, c.anatomy)
    assert float((seen[0.85].painted - c.anatomy)[..., 20:24].max()) > 0.3


def test_trained_estimate_stays_between_prior_and_sources() -> None:
    denoiser = Denoiser(DenoiserConfig(anchor_std=0.0, **SMALL), DiffusionConfig())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    z = denoiser.encode(inputs(2))
    x_t = torch.randn(z.z_prior.shape, generator=generator)
    estimate = denoiser.denoise(x_t, torch.tensor([999, 10]), z)
    prior = to_image(z.z_prior, denoiser.config.levels)
    anchors = torch.stack([prior, prior + z.to_anatomy / 2, prior + z.to_companion / 2])
    image, rho = to_image(estimate.x_0, denoiser.config.levels), denoiser.config.residual_scale / 2
    assert bool((image >= anchors.amin(dim=0) - rho - 1e-5).all())
    assert bool((image <= anchors.amax(dim=0) + rho + 1e-5).all())
    assert float(estimate.gate.detach().abs().max()) > 0.1


def test_posterior_mean_follows_the_noise() -> None:
    """Untrained, so that the anchor is the prior: N(prior, s²) and x_t weighed by their variances."""
    config = DenoiserConfig(anchor_std=0.1, **SMALL)
    denoiser = Denoiser(config, DiffusionConfig()).requires_grad_(False)
    c = inputs(2)
    z = denoiser.encode(c)
    x_t = torch.randn(z.z_prior.shape, generator=torch.Generator().manual_seed(4))
    weights = []
    for t in (0, 200, 900):
        timesteps = torch.tensor([t, t])
        alpha_bar = float(denoiser.alpha_bar[t])
        weight = 0.01 / (0.01 + (1 - alpha_bar) / alpha_bar)
        expected = (1 - weight) * z.z_prior + weight * x_t / alpha_bar**0.5
        torch.testing.assert_close(denoiser.denoise(x_t, timesteps, z).x_0, expected, atol=1e-4, rtol=1e-4)
        weights.append(weight)
    assert weights[0] > 0.9 and weights[2] < 0.01


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_prediction_kinds_recover_x0(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x_0, noise = torch.randn((2, 4, 1, 8, 8), generator=generator)
    alpha_bar = torch.tensor([0.9, 0.5, 0.2, 0.05])
    x_t = add_noise(x_0, noise, alpha_bar)
    a = alpha_bar.reshape(-1, 1, 1, 1)
    prediction = {"epsilon": noise, "v": a.sqrt() * noise - (1 - a).sqrt() * x_0, "x0": x_0}[kind]
    torch.testing.assert_close(estimate_from(prediction, x_t, alpha_bar, kind), x_0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(implied_noise(x_t, x_0, alpha_bar), noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 13, 20), (1, 2, 7, 9, 16)])
def test_padding_is_undone(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    padded, undo = pad_to_multiple(image, 8)
    assert all(n % 8 == 0 for n in padded.shape[2:])
    torch.testing.assert_close(padded[undo], image)


def test_impossible_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="spatial_dims"):
        DenoiserConfig(spatial_dims=4)
    with pytest.raises(ConfigError, match="encoder_channels"):
        DenoiserConfig(encoder_channels=-1)
    with pytest.raises(ConfigError, match="finding_grey"):
        DenoiserConfig(finding_grey=1.5)
    with pytest.raises(ConfigError, match="sampler"):
        DiffusionConfig(sampler="euler")

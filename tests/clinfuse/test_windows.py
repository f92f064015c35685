"""Windows of a volume: cover it, give back what they were cut from, and leave no border in a 3D model's image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clinfuse.case import Case
from clinfuse.errors import ConfigError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import build_denoiser, recipe
from clinfuse.windows import assembled, window_starts


@pytest.mark.parametrize(("depth", "window"), [(64, 16), (33, 16), (17, 16), (192, 48), (100, 64)])
def test_windows_cover_the_volume_and_share_a_quarter(depth: int, window: int) -> None:
    starts = window_starts(depth, window)
    assert starts[0] == 0 and starts[-1] + window == depth
    assert max(np.diff(starts)) <= 0.75 * window + 1
    volume = np.random.default_rng(depth).random((depth, 3, 2)).astype(np.float32)
    parts = [volume[start : start + window] for start in starts]
    np.testing.assert_allclose(assembled(starts, parts), volume, atol=1e-6)


def test_parts_without_overlap_are_put_together_exactly() -> None:
    assert window_starts(12, 16) == window_starts(12, None) == [0]
    volume = np.random.default_rng(1).random((20, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(assembled([0, 16], [volume[:16], volume[16:]]), volume)


def test_a_difference_between_windows_is_spread_over_their_overlap() -> None:
    low, high = np.zeros((16, 1, 1), np.float32), np.ones((16, 1, 1), np.float32)
    line = assembled([0, 8], [low, high])[:, 0, 0]
    assert line[0] == 0 and line[-1] == 1 and np.all(np.diff(line) >= 0)
    assert np.diff(line).max() < 0.13, "no step"


def trained_3d() -> FusionPipeline:
    """A 3D model whose last layer is no longer zero, so that it changes the prior."""
    shape = {"denoiser.spatial_dims": 3, "lesion_head.spatial_dims": 3, "crop": (16, 16, 16)}
    config = recipe("cpu-debug", **{"denoiser.channels": (8, 16), "lesion_head.channels": (4, 8), **shape})
    torch.manual_seed(3)
    denoiser = build_denoiser(config)
    with torch.no_grad():
        for parameter in denoiser.unet.out.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return FusionPipeline(
        members=[denoiser], lesion_head=None, diffusion=config.diffusion, kind="student", student_steps=2
    )


def deep(case: Case, times: int) -> Case:
    """The case stacked upon its mirror image, so many times."""

    def grown(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, array[::-1]] * times)

    names = ("anatomy", "companion", "brain", "bone", "lesion")
    return replace(case, **{name: grown(getattr(case, name)) for name in names})


def test_windows_leave_no_border(tiny_case: Case) -> None:
    case, whole = deep(tiny_case, 2), trained_3d()
    once, other = (whole(case, load_presets()["balanced"], align=False, seed=seed) for seed in (0, 1))
    parts = replace(whole, window=32)(case, load_presets()["balanced"], align=False)
    assert parts.fused.shape == once.fused.shape == case.shape
    gap, by_noise = (np.abs(volume - once.fused).mean() for volume in (parts.fused, other.fused))
    assert 0 < gap < 1.5 * by_noise, "other windows change no more than other noise"
    jumps, own = (np.abs(np.diff(volume, axis=0)).mean(axis=(1, 2)) for volume in (parts.fused, once.fused))
    assert np.abs(jumps - own).max() < 0.1 * own.mean(), "no slice stands out that did not before"


def test_a_window_is_of_a_3d_model_and_not_too_small() -> None:
    with pytest.raises(ConfigError, match="window"):
        replace(trained_3d(), window=8)
    flat = recipe("cpu-debug")
    with pytest.raises(ConfigError, match="2D model"):
        FusionPipeline(members=[build_denoiser(flat)], lesion_head=None, diffusion=flat.diffusion, window=32)


def test_a_window_is_of_a_run_and_not_kept_with_the_model(tmp_path: Path) -> None:
    folder = replace(trained_3d(), window=32).save_pretrained(tmp_path / "model")
    again = FusionPipeline.from_pretrained(folder)
    assert again.window is None
    assert replace(again, window=32).model_hash == again.model_hash

"""FSIM: mask, batch, gradient, sizes; its values are checked on real pairs in test_metrics_field.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clinfuse.case import Case
from clinfuse.errors import GeometryError
from clinfuse.metrics import fsim, roi_fsim
from clinfuse.metrics.fsim import fsim_to_sources, phase_congruency

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def picture(seed: int, height: int = 40, width: int = 48) -> torch.Tensor:
    noise = torch.rand(1, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")


@pytest.mark.parametrize("device", DEVICES)
def test_bounds_order_and_batch(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = picture(0).to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)
    levels = torch.cat([(x + s * noise).clamp(0, 1) for s in (0.0, 0.02, 0.1, 0.3)])
    scores = fsim(levels, x.expand_as(levels))
    assert scores[0].item() == pytest.approx(1.0, abs=1e-5)
    assert (scores.diff() < 0).all()
    alone = torch.cat([fsim(level[None], x) for level in levels])
    assert torch.allclose(scores, alone, atol=1e-5)


def test_mask_says_where_it_counts() -> None:
    x, y = picture(0), picture(0).clone()
    y[..., 24:] = picture(1)[..., 24:]
    left, right = torch.zeros_like(x), torch.zeros_like(x)
    left[..., :16], right[..., 30:] = 1, 1
    assert fsim(y, x, left) > 0.97 > fsim(y, x, torch.ones_like(x)) > fsim(y, x, right)
    assert fsim(y, x, left * 0).item() == 1.0
    assert fsim(y, x, None) == fsim(y, x, torch.ones_like(x))
    assert np.isnan(roi_fsim(y[0].numpy(), x[0].numpy(), (left * 0)[0].numpy()))


def test_gradient_by_finite_differences() -> None:
    x = picture(0, 16, 20).double().requires_grad_()
    y, mask = picture(3, 16, 20).double(), torch.ones(1, 1, 16, 20, dtype=torch.double)
    mask[..., 10:] = 0
    fsim(x, y, mask).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    step = 1e-6
    with torch.no_grad():
        numeric = (fsim(x + step * direction, y, mask) - fsim(x - step * direction, y, mask)) / (2 * step)
    assert (x.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-3)


def test_flat_images_have_finite_gradient() -> None:
    flat = torch.full((1, 1, 24, 24), 0.5, requires_grad=True)
    score = fsim(flat, picture(0, 24, 24))
    score.backward()
    assert torch.isfinite(score) and flat.grad is not None and torch.isfinite(flat.grad).all()


def test_volume_is_pooled_over_the_mask(tiny_case: Case) -> None:
    rng = np.random.default_rng(0)
    f = np.clip(tiny_case.anatomy + rng.normal(0, 0.1, tiny_case.shape), 0, 1).astype(np.float32)
    a, mask = tiny_case.anatomy, tiny_case.brain
    one = roi_fsim(f[6], a[6], mask[6])
    tensors = (torch.from_numpy(x[6][None, None].astype(np.float32)) for x in (f, a, mask))
    assert one == pytest.approx(fsim(*tensors).item(), abs=1e-5)
    assert 0 < roi_fsim(f, a, mask) < 1
    both = fsim_to_sources(f, [a, tiny_case.companion], mask)
    assert both == pytest.approx([roi_fsim(f, a, mask), roi_fsim(f, tiny_case.companion, mask)])


def test_phase_congruency_ignores_contrast() -> None:
    """A step edge keeps its phase congruency when its contrast is halved (Kovesi 1999)."""
    edge = torch.zeros(1, 1, 48, 48)
    edge[..., 24:] = 200.0
    strong, weak = phase_congruency(edge), phase_congruency(edge / 2 + 30)
    assert torch.allclose(strong, weak, atol=1e-3)
    assert strong[..., 23:25].mean() > strong[..., 14:18].mean()


def test_odd_and_large_slices() -> None:
    x = picture(0, 44, 52)[..., :43, :51]
    assert fsim(x, x).item() == pytest.approx(1.0, abs=1e-5)
    large = picture(0, 512, 520)
    assert fsim(large, large, torch.ones_like(large)).item() == pytest.approx(1.0, abs=1e-5)


def test_wrong_shapes_are_refused() -> None:
    x = picture(0)
    with pytest.raises(GeometryError, match=r"\(1, 1, 40, 48\) and \(1, 1, 40, 47\)"):
        fsim(x, x[..., :47])
    with pytest.raises(GeometryError, match="one channel"):
        fsim(x.expand(1, 3, 40, 48), x.expand(1, 3, 40, 48))

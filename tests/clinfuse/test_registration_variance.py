"""Registration variance: closed form on a ramp, and against warps that are really drawn."""

from __future__ import annotations

import numpy as np
import torch

from clinfuse.case import Case
from clinfuse.method.inputs import Inputs
from clinfuse.method.jitter import Warp, apply
from clinfuse.method.prior import fusion_prior, look
from clinfuse.method.uncertainty import REMAINING_MM, registration_variance, slopes


def variance(inputs: Inputs, spacing_mm: tuple[float, ...]) -> torch.Tensor:
    sources = look(inputs)
    return registration_variance(slopes(sources, inputs.masks[:, 1:2], spacing_mm), inputs.vector)


def test_a_ramp_of_bone_has_the_variance_of_its_slope() -> None:
    slope, step = 0.01, 1.5
    ramp = (0.3 + slope * step * torch.arange(32.0)).expand(1, 1, 24, 32)
    bone, none = torch.ones_like(ramp), torch.zeros_like(ramp)
    vector = torch.full((1, 6), 1 / 3)
    inputs = Inputs(none, ramp, torch.cat([none, bone, none], dim=1), vector, torch.ones(1))
    found = variance(inputs, (2.0, step))
    inside = found[0, 0, 4:-4, 4:-4]
    torch.testing.assert_close(inside, torch.full_like(inside, (REMAINING_MM * slope) ** 2), rtol=0.1, atol=0)


def test_nothing_to_move_means_no_variance() -> None:
    flat = torch.full((2, 1, 16, 16), 0.4)
    masks = torch.zeros(2, 3, 16, 16)
    inputs = Inputs(torch.rand(2, 1, 16, 16), flat, masks, torch.full((2, 6), 1 / 3), torch.ones(2))
    assert float(variance(inputs, (1.0, 1.0)).max()) < 1e-12


def test_it_ranks_voxels_as_drawn_shifts_do(tiny_case: Case) -> None:
    volume = [torch.from_numpy(np.asarray(x, np.float32))[None, None] for x in _arrays(tiny_case)]
    anatomy, companion, brain, bone, lesion = volume
    vector = torch.full((1, 6), 1 / 3)
    inputs = Inputs(anatomy, companion, torch.cat([brain, bone, lesion], dim=1), vector, torch.ones(1))
    expected = variance(inputs, tiny_case.spacing).sqrt()
    still = fusion_prior(inputs)
    generator = torch.Generator().manual_seed(4)
    squares = []
    for shift in REMAINING_MM * torch.randn(40, 3, generator=generator):
        warp = Warp(translation_mm=tuple(shift.tolist()), rotation_deg=(0.0, 0.0, 0.0))
        moved = apply(warp, companion, tiny_case.spacing)
        squares.append((fusion_prior(inputs._replace(companion=moved)) - still) ** 2)
    drawn = torch.stack(squares).mean(0).sqrt()
    assert np.corrcoef(expected.flatten(), drawn.flatten())[0, 1] > 0.9
    assert 0.5 < float(expected.mean() / drawn.mean()) < 2


def _arrays(case: Case) -> tuple[np.ndarray, ...]:
    return case.anatomy, case.companion, case.brain, case.bone, case.lesion

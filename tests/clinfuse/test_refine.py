"""The refined prior: better than where it starts by measures of its own, in range, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as tf
from clinfuse_prep.prepare import prepare_pair
from scipy.ndimage import gaussian_gradient_magnitude
from torch import Tensor

from clinfuse.baselines import BASELINES
from clinfuse.case import Case
from clinfuse.method import refine
from clinfuse.method.inputs import Inputs
from clinfuse.method.prior import FINDING_GREY, fusion_prior
from clinfuse.method.refine import refined_prior
from clinfuse.method.seam_loss import gradient_magnitude
from clinfuse.metrics.roi import roi_psnr, roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.presets import load_presets

BALANCED = load_presets()["balanced"]


def head(size: int = 64, blood: float = 0.0) -> tuple[Tensor, ...]:
    """Anatomy, companion, brain, bone, lesion of one slice: a textured disc in a ring of bone, fat between."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(size) - size / 2, torch.arange(size) - size / 2, indexing="ij")
    radius = (y**2 + (x * 1.1) ** 2).sqrt() / size
    texture = 0.15 * torch.rand((size, size), generator=generator)
    brain, bone = (radius < 0.3).float(), ((radius > 0.33) & (radius < 0.42)).float()
    anatomy = brain * (0.45 + texture) + (radius > 0.42) * (radius < 0.46) * 0.9
    drop = ((y + 5) ** 2 + x**2 < 16).float()
    companion = bone * (0.75 + texture) + brain * (0.1 + 0.02 * texture) + blood * drop
    return tuple(t.clamp(0, 1).float()[None, None] for t in (anatomy, companion, brain, bone, 0 * brain))


def dilated(mask: Tensor, voxels: int) -> Tensor:
    return tf.max_pool2d(mask, 2 * voxels + 1, 1, voxels)


def vector(alpha: float = 1 / 3, beta: float = 1 / 3) -> Tensor:
    return torch.tensor([[alpha, beta, 1 - alpha - beta, 1 / 3, 1 / 3, 1 / 3]])


def inputs(sources: tuple[Tensor, ...], weights: Tensor | None = None, ct: float = 1.0) -> Inputs:
    anatomy, companion, *masks = sources
    weights = (vector() if weights is None else weights).expand(len(anatomy), -1)
    return Inputs(anatomy, companion, torch.cat(masks, dim=1), weights, torch.full((len(anatomy),), ct))


def scores(fused: Tensor, sources: tuple[Tensor, ...]) -> dict[str, float]:
    image, anatomy, companion, brain, bone = (t[0].numpy() for t in (fused, *sources[:4]))
    return {
        "brain": roi_ssim(image, anatomy, brain),
        "bone": roi_ssim(image, companion, bone),
        "bone_psnr": roi_psnr(image, companion, bone),
        "seam": seam_index(image, [anatomy, companion], [brain, bone]),
    }


def test_no_step_is_the_fusion_prior() -> None:
    sources = head()
    assert torch.equal(refined_prior(inputs(sources), steps=0), fusion_prior(inputs(sources)))


def test_it_is_nearer_to_its_sources_than_the_fusion_prior() -> None:
    sources = head()
    before, after = (scores(f(inputs(sources)), sources) for f in (fusion_prior, refined_prior))
    assert after["bone"] > before["bone"] and after["bone_psnr"] > before["bone_psnr"] + 3
    assert after["brain"] > before["brain"] - 0.01


def test_the_seam_term_softens_borders_that_no_source_has(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, companion, brain, bone, lesion = head()
    sources = (0.5 * anatomy + 0.2, 0.2 * companion + 0.7, brain, bone, lesion)
    with_it = scores(refined_prior(inputs(sources)), sources)["seam"]
    monkeypatch.setattr(refine, "SEAM_WEIGHT", 0.0)
    assert with_it < 0.9 * scores(refined_prior(inputs(sources)), sources)["seam"]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_seam_term_takes_the_gradient_that_the_seam_index_measures(dims: int) -> None:
    image = torch.rand((1, 1, *(20, 24, 28)[:dims]), generator=torch.Generator().manual_seed(2))
    expected = gaussian_gradient_magnitude(image[0, 0].double().numpy(), 0.7)
    inner = (slice(4, -4),) * dims
    found = gradient_magnitude(image)[0, 0].numpy()
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


@pytest.mark.real
def test_on_real_pairs_bone_and_seam_reach_their_goals_at_once(data_root: Path) -> None:
    """Middle slices of every AANLIB patient; the hard composite has bone to the grey, and a seam of 2 to 6 greys."""
    patients = sorted((data_root / "aanlib" / "MRI-CT").glob("case_*"))
    if not patients:
        pytest.skip("no real slices here")
    found, kept = [], []
    for patient in patients:
        slices = sorted((patient / "MRI").glob("*.png"))
        name = slices[len(slices) // 2].name
        case = prepare_pair(patient / "MRI" / name, patient / "CT" / name, case_id="real")
        fused = BASELINES["refined"](case, BALANCED)
        seam = seam_index(fused, [case.anatomy, case.companion], [case.brain, case.bone])
        bone = roi_ssim(fused, case.companion, case.bone), roi_psnr(fused, case.companion, case.bone)
        brighter = np.maximum(case.anatomy, case.companion)
        outside = (case.brain + case.bone == 0) & (brighter > 0.3)
        kept.append(float(fused[outside].mean() / brighter[outside].mean()))
        found.append((*bone, seam, roi_ssim(fused, case.anatomy, case.brain)))
    bone_ssim, bone_psnr, seam, brain_ssim = np.mean(found, axis=0)
    assert min(kept) >= 0.75, "what neither region claims, scalp above all, is not given up for the seam"
    assert bone_ssim >= 0.985 and bone_psnr >= 40 and seam <= 0.3
    assert brain_ssim >= 0.93, "what the seam costs the brain's border stays small"


def test_scalp_that_touches_bone_stays_mri() -> None:
    """Neither region claims it, and windows of the bone's SSIM that reach into it would gain by its loss."""
    anatomy, companion, brain, bone, lesion = head()
    scalp = (dilated(bone, 4) - bone) * (1 - dilated(brain, 2))
    anatomy = torch.where(scalp > 0, 0.7, anatomy * brain)
    companion = torch.where(scalp > 0, 0.2, companion)
    batch = inputs((anatomy, companion, brain, bone, lesion))
    beside = scalp * dilated(bone, 1)
    kept, kept_beside = (
        float((refined_prior(batch) * part).sum() / (fusion_prior(batch) * part).sum())
        for part in (scalp, beside)
    )
    assert kept > 0.85 and kept_beside > 0.6


def test_weights_decide_which_source_gains() -> None:
    sources = head()
    soft, hard = (scores(refined_prior(inputs(sources, vector(a, 0.9 - a))), sources) for a in (0.7, 0.2))
    assert soft["brain"] > hard["brain"] and hard["bone"] > soft["bone"]


def test_cortex_that_touches_bone_stays_mri() -> None:
    """SSIM windows reach over the border: by the plain gradient half of such cortex would become CT."""
    anatomy, companion, brain, _, lesion = head()
    bone = dilated(brain, 6) - brain
    companion = torch.where(bone > 0, 0.9, companion)
    sources = (anatomy, companion, brain, bone, lesion)
    fused, as_tracer = (refined_prior(inputs(sources, vector(0.1, 0.8), ct)) for ct in (1.0, 0.0))
    cortex, gap = brain - (1 - dilated(1 - brain, 1)), companion - anatomy

    def shown(image: Tensor) -> float:
        return float(((image - anatomy) * gap * cortex).sum() / (gap**2 * cortex).sum())

    assert abs(shown(fused)) < 0.1
    assert float(((fused - companion).abs() * bone).sum() / bone.sum()) < 0.03
    assert shown(as_tracer) > 0.4, "uptake has no border of its own, there each term moves all it sees"


def test_blood_that_only_the_companion_shows_stays() -> None:
    sources = head(blood=0.12)
    drop = (sources[1] > 0.2) & (sources[2] > 0)
    fused = refined_prior(inputs(sources))
    core = drop[0, 0].numpy()
    assert float(fused[0, 0][core].mean()) > 0.85 * FINDING_GREY
    assert float(sources[0][0, 0][core].mean()) < 0.6


def test_every_sample_goes_its_own_way() -> None:
    one, other = head(), head(blood=0.12)
    both = tuple(torch.cat(pair) for pair in zip(one, other, strict=True))
    together = refined_prior(inputs(both))
    for index, alone in enumerate((one, other)):
        gap = (together[index] - refined_prior(inputs(alone))[0]).abs()
        assert float(gap.mean()) < 1e-3, "last bits may grow at single voxels, no more"


@pytest.mark.parametrize("empty", ["brain", "bone", "both"])
def test_missing_regions_and_volumes_are_fine(empty: str) -> None:
    anatomy, companion, brain, bone, lesion = (
        t.expand(-1, 12, -1, -1)[:, None, :, 16:48, 16:48] for t in head()
    )
    brain = brain * 0 if empty in ("brain", "both") else brain
    bone = bone * 0 if empty in ("bone", "both") else bone
    fused = refined_prior(inputs((anatomy, companion, brain, bone, lesion)), steps=3)
    assert fused.shape == anatomy.shape and torch.isfinite(fused).all()
    assert float(fused.min()) >= 0 and float(fused.max()) <= 1


def test_as_a_method_it_takes_a_case_slice_by_slice(tiny_case: Case) -> None:
    fused = BASELINES["refined"](tiny_case, BALANCED)
    assert fused.shape == tiny_case.shape and fused.dtype == np.float32
    slab = BASELINES["refined"](tiny_case.slices(3, 5), BALANCED)
    assert np.abs(slab - fused[3:5]).mean() < 1e-3

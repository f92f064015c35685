"""The fusion prior: MRI in brain, CT in bone, blood survives, presets move the border, slices are independent."""

import torch

from clinfuse.method.inputs import Inputs
from clinfuse.method.prior import findings, fusion_prior, look, weight_of
from clinfuse.method.ssim import ssim_loss
from clinfuse.presets import load_presets

VECTOR = torch.tensor([load_presets()["balanced"].vector])


def head(size: int = 64) -> dict[str, torch.Tensor]:
    """A disc of brain in a ring of bone, (1, 1, size, size)."""
    axis = torch.arange(size) - (size - 1) / 2
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()[None, None] / (size / 2)
    noise = 0.02 * torch.randn(radius.shape, generator=torch.Generator().manual_seed(0))
    brain, bone = (radius < 0.6).float(), ((radius > 0.68) & (radius < 0.85)).float()
    anatomy = (0.5 * brain + 0.3 * ((radius > 0.88) & (radius < 0.95)) + noise).clamp(0, 1)
    companion = (0.8 * bone + 0.1 * brain + 0.5 * noise).clamp(0, 1)
    return {
        "anatomy": anatomy,
        "companion": companion,
        "brain": brain,
        "bone": bone,
        "lesion": torch.zeros_like(brain),
    }


def inputs(case: dict[str, torch.Tensor], vector: torch.Tensor = VECTOR, ct: float = 1.0) -> Inputs:
    """The case as a batch of MRI and CT, or of MRI and a tracer (0)."""
    masks = torch.cat([case["brain"], case["bone"], case["lesion"]], dim=1)
    count = len(masks)
    return Inputs(
        case["anatomy"], case["companion"], masks, vector.expand(count, -1), torch.full((count,), ct)
    )


def test_looks_like_its_sources_in_their_regions() -> None:
    case = head()
    fused = fusion_prior(inputs(case))
    assert ssim_loss(fused, case["anatomy"], case["brain"]) < 0.05
    assert ssim_loss(fused, case["companion"], case["bone"]) < 0.08
    assert float(fused.min()) >= 0
    assert float(fused.max()) <= 1


def test_equal_sources_stay_as_they_are() -> None:
    case = head()
    case["companion"] = case["anatomy"]
    case["brain"] = torch.zeros_like(case["brain"])
    torch.testing.assert_close(fusion_prior(inputs(case)), case["anatomy"], atol=1e-5, rtol=0)


def test_blood_in_brain_survives() -> None:
    case = head()
    blood = torch.zeros_like(case["brain"])
    blood[..., 28:34, 28:34] = 1
    case["companion"] = case["companion"] + 0.1 * blood
    shown = findings(case["companion"], case["brain"], case["bone"])
    assert float(shown[blood > 0].mean()) > 0.7
    assert float(shown[(blood == 0)].mean()) < 0.02
    fused = fusion_prior(inputs(case))
    inside, around = fused[blood > 0].mean(), fused[(blood == 0) & (case["brain"] > 0)].mean()
    assert float(inside - around) > 0.1


def test_without_a_grey_no_finding_is_painted() -> None:
    case = head()
    blood = torch.zeros_like(case["brain"])
    blood[..., 28:34, 28:34] = 1
    bleeding = {**case, "companion": case["companion"] + 0.1 * blood}
    assert bool((look(inputs(bleeding)).painted > look(inputs(bleeding), grey=0.0).painted)[blood > 0].all())
    sources = look(inputs(bleeding), grey=0.0)
    assert torch.equal(sources.painted, case["anatomy"]) and not sources.room.any()
    plain, shown = (fusion_prior(inputs(bleeding), grey)[blood > 0] for grey in (0.0, 0.85))
    none = fusion_prior(inputs(case))[blood > 0]
    assert float((plain - none).abs().mean()) < 0.01
    assert float((shown - none).abs().mean()) > 0.1


def test_of_a_tracer_no_finding_is_painted() -> None:
    case = head()
    case["companion"][..., 28:34, 28:34] += 0.3
    as_ct, as_tracer, unpainted = look(inputs(case)), look(inputs(case, ct=0.0)), look(inputs(case), grey=0.0)
    assert float((as_ct.painted - case["anatomy"]).max()) > 0.2
    for one, other in zip(as_tracer, unpainted, strict=True):
        torch.testing.assert_close(one, other)


def test_beta_gives_bone_more_room() -> None:
    case = head()
    presets = load_presets()
    bony, soft = (
        weight_of(look(inputs(case)), torch.tensor([presets[name].vector]))
        for name in ("bone_tumor", "stroke")
    )
    gap = (case["bone"] == 0) & (case["brain"] == 0)
    assert float((bony - soft).min()) >= -1e-4
    assert float((bony - soft)[gap].max()) > 0.1


def test_sample_does_not_see_its_neighbours() -> None:
    case = head()
    other = {k: v.flip(-1) for k, v in case.items()}
    both = {k: torch.cat([case[k], other[k]]) for k in case}
    together = fusion_prior(inputs(both))
    torch.testing.assert_close(together[:1], fusion_prior(inputs(case)), atol=1e-6, rtol=0)

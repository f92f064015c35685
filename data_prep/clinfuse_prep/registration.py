"""Registration of the companion onto the anatomy image: rigid or affine, by mutual information, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid, covered, resample, with_spacing
from clinfuse_prep.itk import to_itk, transform_matrix
from clinfuse_prep.masks.head import head_mr
from clinfuse_prep.shear import upright

TURNS_DEG = (0.0, 15.0, -15.0)
"""Starts about each axis: mutual information of whole heads has false maxima some 10° from the true one."""
COARSE, GLANCE, PURSUED = 4, 20, 2
"""Factor by which the first search is coarser; rounds after which starts are compared, and how many then go on."""
WORKING_MM = 2.0
BINS, SAMPLES, SEED = 40, 20_000, 20
DESCENT = {"rigid": (2.0, 120, 0.9), "affine": (1.0, 300, 0.85)}
"""First step in mm (of the voxel that moves most: a step given in parameters can be a turn of 70°), rounds a level,
and what is left of a step where the gradient turns round."""
LARGEST_STRETCH = 1.25
DOUBTFUL_TURN_DEG = 30.0
LEAST_ABOVE_CHANCE = 0.02
LEAST_COVERAGE = 0.5


def register(
    anatomy: NDArray[np.float32],
    grid: Grid,
    companion: NDArray[np.float32],
    companion_grid: Grid,
    kind: str,
    case: str,
) -> tuple[dict[str, Any], list[Finding]]:
    """Find the linear map that lays the companion on the anatomy image; one that brings nothing is not used.

    Args:
        anatomy: (D, H, W) raw values on `grid`, stays. companion: (D, H, W) on its own grid, is moved.
        kind: "rigid" or "affine".

    Returns:
        The record for the case's attributes: method ("rigid", "affine", or "header" if neither helped), transform
        (4×4, anatomy mm → companion mm in RAS+), shift_mm and turn_deg, nmi and nmi_before (normalised mutual
        information, 1 to 2, where head and companion overlap), nmi_chance (the same of shuffled voxels), coverage
        (share of the head that the companion shows), doubtful;
        and a finding if doubtful.

    Reference: Mattes et al., IEEE TMI 22(1), 2003; Studholme et al., Pattern Recognition 32(1), 1999.
    """
    fixed = to_itk(*_working(_clipped(anatomy), grid))
    moving = to_itk(*_working(_clipped(companion), companion_grid))
    head = head_mr(anatomy, grid.spacing)
    mask = to_itk(*_working(head.astype(np.float32), grid))
    mask = sitk.Cast(mask > 0.5, sitk.sitkUInt8)
    best = _coarse(fixed, moving, mask)
    best, value = _optimise(fixed, moving, mask, best, (2, 1))
    findings = []
    if kind == "affine":
        wider, wider_value = _optimise(fixed, moving, mask, _as_affine(best), (2, 1))
        if wider_value < value and _plausible(transform_matrix(wider)):
            best = wider
        else:
            kind = "rigid"
            findings.append(_kept(case, "the rigid registration was kept", "after a plausible affine one"))
    matrix = transform_matrix(best)
    before = _shared(anatomy, grid, companion, companion_grid, head, np.eye(4))
    after = _shared(anatomy, grid, companion, companion_grid, head, matrix)
    if after.nmi < before.nmi and before.coverage >= LEAST_COVERAGE:
        matrix, after, kind = np.eye(4), before, "header"
        findings = [_kept(case, "the position by the headers was kept", "after the registration")]
    shift, turn = motion(matrix, grid)
    reasons = _doubts(after, turn)
    findings += [_finding(case, reasons)] if reasons else []
    record = {
        "method": kind,
        "transform": matrix.tolist(),
        "shift_mm": shift,
        "turn_deg": turn,
        "nmi": after.nmi,
        "nmi_before": before.nmi,
        "nmi_chance": after.chance,
        "coverage": after.coverage,
        "doubtful": bool(reasons),
    }
    return record, findings


@dataclass(frozen=True)
class Shared:
    """What two images share inside the head: nmi (1 to 2), the same by chance, and the share of it both show."""

    nmi: float
    chance: float
    coverage: float


def _shared(
    anatomy: NDArray[np.float32],
    grid: Grid,
    companion: NDArray[np.float32],
    companion_grid: Grid,
    head: NDArray[np.bool_],
    matrix: NDArray[np.float64],
) -> Shared:
    """What the head and the companion share after moving the companion (anatomy mm → companion mm)."""
    moved = Grid(companion_grid.shape, np.linalg.inv(matrix) @ companion_grid.affine)
    both = head & covered(moved, grid)
    if not both.any():
        return Shared(1.0, 1.0, 0.0)
    on_grid = resample(companion, moved, grid, fill=float(companion.min()))
    a, b = anatomy[both], on_grid[both]
    chance = nmi(a, np.random.default_rng(SEED).permutation(b))
    return Shared(nmi(a, b), chance, float(both.sum() / head.sum()))


def _working(volume: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], Grid]:
    """The volume at right angles, with spacings of at least 2 mm: finer ones bring a linear map nothing but cost."""
    straight = upright(grid)
    d, h, w = (max(s, WORKING_MM) for s in straight.spacing)
    coarse = with_spacing(straight, (d, h, w))
    return resample(volume, grid, coarse, fill=float(volume.min())), coarse


def _coarse(fixed: Any, moving: Any, mask: Any) -> Any:
    """The best of several starts after a search at a quarter of the resolution.

    Starts: headers as they are; centres laid together, turned by 0 and ±15° about each axis.
    """
    laid = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    centre = sitk.Euler3DTransform(laid).GetCenter()
    starts = [sitk.Euler3DTransform()]
    starts[0].SetCenter(centre)
    for turns in product(TURNS_DEG, repeat=3):
        start = sitk.Euler3DTransform(laid)
        start.SetRotation(*np.deg2rad(turns))
        starts.append(start)
    factor = _factor(fixed, COARSE)
    soft, there = (sitk.SmoothingRecursiveGaussian(image, COARSE - 1.0) for image in (fixed, moving))
    here, inside = (sitk.Shrink(image, [factor] * 3) for image in (soft, mask))
    seen = [_optimise(here, there, inside, start, (1,), GLANCE) for start in starts]
    best = sorted(seen, key=lambda end: end[1])[:PURSUED]
    ends = [_optimise(here, there, inside, start, (1,)) for start, _ in best]
    return min(ends, key=lambda end: end[1])[0]


def _as_affine(rigid: Any) -> Any:
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _plausible(matrix: NDArray[np.float64]) -> bool:
    """Whether a linear map stretches no direction by more than one person's head differs from another's."""
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(stretch.min() >= 1 / LARGEST_STRETCH and stretch.max() <= LARGEST_STRETCH)


def _method(mask: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimise(
    fixed: Any, moving: Any, mask: Any, start: Any, shrink: tuple[int, ...], most: int | None = None
) -> tuple[Any, float]:
    """Where a start leads to after the usual or `most` rounds a level, and the metric there (less is better)."""
    method = _method(mask)
    step, rounds, relax = DESCENT["affine" if isinstance(start, sitk.AffineTransform) else "rigid"]
    method.SetOptimizerAsRegularStepGradientDescent(
        step, 1e-2, most or rounds, relax, 1e-6, method.EachIteration, step
    )
    method.SetOptimizerScalesFromPhysicalShift()
    factors = [_factor(fixed, factor) for factor in shrink]
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([_share(fixed, factor) for factor in factors], SEED)
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel([float(s - 1) for s in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    try:
        done = method.Execute(fixed, moving)
    except RuntimeError:
        return start, np.inf
    return done.GetBackTransform() if isinstance(
        done, sitk.CompositeTransform
    ) else done, method.GetMetricValue()


def _factor(image: Any, factor: int) -> int:
    """The factor to shrink by, or 1 where fewer than 16 voxels were left along an axis."""
    return factor if min(image.GetSize()) >= 16 * factor else 1


def _share(fixed: Any, factor: int) -> float:
    """Of a level's voxels, `SAMPLES` at most."""
    return float(min(1.0, SAMPLES * factor**3 / np.prod(fixed.GetSize())))


def _clipped(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without outliers, and CT to [-200, 1000], so that the histogram's bins serve tissue."""
    low, high = np.percentile(volume, (0.5, 99.8))
    if low < -300:
        low, high = -200.0, 1000.0
    return np.clip(volume, low, high).astype(np.float32)


def nmi(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Normalised mutual information (H(A) + H(B)) / H(A, B), 1 (independent) to 2 (one determines the other).

    Args:
        a, b: voxels of one grid, any shape and units; few voxels get few bins, so that chance counts little.

    Reference: Studholme et al., Pattern Recognition 32(1), 1999.
    """
    bins = int(np.clip(np.sqrt(a.size / 40), 8, 48))
    joint = np.histogram2d(_clipped(a).ravel(), _clipped(b).ravel(), bins=bins)[0]
    p = joint / joint.sum()
    entropies = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in (p.sum(1), p.sum(0), p.ravel())]
    return float((entropies[0] + entropies[1]) / entropies[2]) if entropies[2] > 0 else 1.0


def motion(matrix: NDArray[np.float64], grid: Grid) -> tuple[float, float]:
    """Shift of the grid's centre in mm and turn in degrees of a 4×4 map in RAS+ mm."""
    middle = grid.affine @ np.array([*[(n - 1) / 2 for n in grid.shape[::-1]], 1.0])
    u, _, v = np.linalg.svd(matrix[:3, :3])
    turn = np.rad2deg(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1)))
    return float(np.linalg.norm((matrix @ middle - middle)[:3])), float(turn)


def _doubts(after: Shared, turn: float) -> list[str]:
    doubts = []
    if after.nmi - after.chance < LEAST_ABOVE_CHANCE:
        doubts.append(f"images share little information ({after.nmi:.3f}, by chance {after.chance:.3f})")
    if after.coverage < LEAST_COVERAGE:
        doubts.append(f"the companion shows only {after.coverage:.0%} of the head")
    if turn > DOUBTFUL_TURN_DEG:
        doubts.append(f"a large turn ({turn:.0f}°)")
    return doubts


def _kept(case: str, what: str, after: str) -> Finding:
    return Finding(
        case=case,
        severity="info",
        problem=what,
        expected=f"more shared information {after}",
        found="no more of it",
    )


def _finding(case: str, reasons: list[str]) -> Finding:
    return Finding(
        case=case,
        severity="warning",
        problem="the registration is doubtful",
        expected="more shared information after a moderate motion",
        found="; ".join(reasons),
        todo="look at the contact sheet; give registered images or leave the case out",
    )

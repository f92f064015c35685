"""Registration of the companion onto the anatomy image: rigid or affine, by mutual information, with a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid, resample
from clinfuse_prep.itk import to_itk, transform_matrix
from clinfuse_prep.masks.head import head_mr

STARTS_DEG = (0.0, 12.0, -12.0)
BINS, SAMPLES, SEED = 40, 20_000, 20
DOUBTFUL_SHIFT_MM, DOUBTFUL_TURN_DEG = 40.0, 25.0
LEAST_GAIN = 1.02
LEAST_NMI = 1.05


def register(
    anatomy: NDArray[np.float32],
    grid: Grid,
    companion: NDArray[np.float32],
    companion_grid: Grid,
    kind: str,
    case: str,
) -> tuple[dict[str, Any], list[Finding]]:
    """Find the linear map that lays the companion on the anatomy image.

    Args:
        anatomy: (D, H, W) raw values on `grid`, stays. companion: (D, H, W) on its own grid, is moved.
        kind: "rigid" or "affine".

    Returns:
        The record for the case's attributes: method, transform (4×4, anatomy mm → companion mm in RAS+), shift_mm
        and turn_deg, nmi and nmi_before (normalised mutual information 1 to 2), doubtful; and a finding if doubtful.

    Reference: Mattes et al., IEEE TMI 22(1), 2003; Studholme et al., Pattern Recognition 32(1), 1999.
    """
    fixed, moving = to_itk(_clipped(anatomy), grid), to_itk(_clipped(companion), companion_grid)
    mask = to_itk(head_mr(anatomy, grid.spacing).astype(np.uint8), grid)
    best, value = None, np.inf
    for degrees in STARTS_DEG:
        transform, metric = _attempt(fixed, moving, mask, degrees, kind)
        if metric < value:
            best, value = transform, metric
        if degrees == 0.0 and metric < -0.35:
            break
    matrix = transform_matrix(best)
    before = nmi(anatomy, resample(companion, companion_grid, grid))
    moved = Grid(companion_grid.shape, np.linalg.inv(matrix) @ companion_grid.affine)
    after = nmi(anatomy, resample(companion, moved, grid))
    shift, turn = motion(matrix, grid)
    reasons = _doubts(before, after, shift, turn)
    record = {
        "method": kind,
        "transform": matrix.tolist(),
        "shift_mm": shift,
        "turn_deg": turn,
        "nmi": after,
        "nmi_before": before,
        "doubtful": bool(reasons),
    }
    return record, [_finding(case, reasons)] if reasons else []


def _attempt(fixed: Any, moving: Any, mask: Any, degrees: float, kind: str) -> tuple[Any, float]:
    """One multi-resolution optimisation from a start turned about the left-right axis."""
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    rigid = sitk.Euler3DTransform(start)
    if degrees == 0.0:
        overlap_start = sitk.Euler3DTransform()
        overlap_start.SetCenter(rigid.GetCenter())
        rigid = _better(fixed, moving, mask, rigid, overlap_start)
    else:
        rigid.SetRotation(np.deg2rad(degrees), 0.0, 0.0)
    rigid, value = _optimise(fixed, moving, mask, rigid, (4, 2, 1))
    if kind != "affine":
        return rigid, value
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    affine.SetCenter(rigid.GetCenter())
    return _optimise(fixed, moving, mask, affine, (2, 1))


def _method(mask: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetNumberOfThreads(1)
    return method


def _better(fixed: Any, moving: Any, mask: Any, one: Any, other: Any) -> Any:
    """Of two starts (centres laid together; headers trusted) the one with more mutual information."""
    values = []
    for start in (one, other):
        method = _method(mask)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(_share(fixed), SEED)
        method.SetInitialTransform(start)
        try:
            values.append(method.MetricEvaluate(fixed, moving))
        except RuntimeError:
            values.append(np.inf)
    return one if values[0] < values[1] else other


def _optimise(fixed: Any, moving: Any, mask: Any, start: Any, shrink: tuple[int, ...]) -> tuple[Any, float]:
    method = _method(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_share(fixed), SEED)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 120, 0.6, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    thin = min(fixed.GetSize()) < 16 * max(shrink)
    method.SetShrinkFactorsPerLevel([1] * len(shrink) if thin else list(shrink))
    method.SetSmoothingSigmasPerLevel([float(s - 1) for s in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    try:
        done = method.Execute(fixed, moving)
    except RuntimeError:
        return start, np.inf
    return (
        done.GetBackTransform() if done.GetName() == "CompositeTransform" else done,
        method.GetMetricValue(),
    )


def _share(fixed: Any) -> float:
    return float(min(1.0, SAMPLES / np.prod(fixed.GetSize())))


def _clipped(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without outliers, and CT to [-200, 1000], so that the histogram's bins serve tissue."""
    low, high = np.percentile(volume, (0.5, 99.8))
    if low < -300:
        low, high = -200.0, 1000.0
    return np.clip(volume, low, high).astype(np.float32)


def nmi(a: NDArray[np.float32], b: NDArray[np.float32], bins: int = 48) -> float:
    """Normalised mutual information (H(A) + H(B)) / H(A, B), 1 (independent) to 2 (one determines the other).

    Args:
        a, b: (D, H, W) on one grid, any units.

    Reference: Studholme et al., Pattern Recognition 32(1), 1999.
    """
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


def _doubts(before: float, after: float, shift: float, turn: float) -> list[str]:
    doubts = []
    if after < before:
        doubts.append(f"images share less information than before ({before:.3f} → {after:.3f})")
    if after < LEAST_NMI:
        doubts.append(f"images share little information ({after:.3f})")
    if shift > DOUBTFUL_SHIFT_MM or turn > DOUBTFUL_TURN_DEG:
        doubts.append(f"a large motion ({shift:.0f} mm, {turn:.0f}°)")
    return doubts


def _finding(case: str, reasons: list[str]) -> Finding:
    return Finding(
        case=case,
        severity="warning",
        problem="the registration is doubtful",
        expected="more shared information after a moderate motion",
        found="; ".join(reasons),
        todo="look at the contact sheet; give registered images or leave the case out",
    )

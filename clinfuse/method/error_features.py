"""What the error head looks at: a voxel and its surroundings in both sources, F, its variances and the masks.

The network's own errors, noise and the misregistration that is left show in different places: at steep borders of the
companion, where the borders of the two sources do not lie on each other, near the rim of a mask, where F leaves both
sources. None of the three variances sees all of it; together with the surroundings they do. NumPy only, as
whoever combines the draws of an ensemble needs no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import Case, FloatArray
from clinfuse.method.band import blurred, reach
from clinfuse.method.variances import Variances

SIGMAS_MM = (1.5, 3.0)
"""Standard deviations of the Gaussian windows, mm."""
SLOPE_FLOOR = 0.01
"""Per mm: what is less steep has no border to speak of."""
SLAB = 24
"""Axial slices taken at once, so that memory does not grow with so many maps of a whole volume."""
FLOOR = 1e-3
"""Added before logarithms: a quarter of a grey level."""
LEAST_INFORMATION = 1e-3
"""Nat: of less, no gain can be told."""
BRIGHT = 0.35
"""Of the companion; in a bone window only bone is as bright."""
COUNT = 41
"""Features of a voxel."""
MASKS = (34, 35, 36)
"""Those of them that say whether it lies in brain, bone, lesion."""
IN_BRAIN = [29, 31, 32]
"""Those of them that count in the brain: F's gap to the anatomy image, aleatoric and epistemic variance."""

BoolArray = NDArray[np.bool_]


def head_voxels(case: Case) -> BoolArray:
    """(D, H, W): where one of the images is brighter than air, or a mask lies."""
    inside = case.head
    for mask in case.masks.values():
        inside |= mask > 0
    return np.asarray(inside)


def only_brain(rows: FloatArray) -> BoolArray:
    """(n,) of rows of features (n, COUNT): in the brain, and neither in bone nor in a lesion."""
    brain, bone, lesion = (rows[:, column] > 0 for column in MASKS)
    return np.asarray(brain & ~bone & ~lesion)


def features(
    case: Case, fused: FloatArray, variances: Variances, where: BoolArray
) -> Iterator[tuple[slice, FloatArray]]:
    """Features of the voxels asked for, slab by slab; how a volume is cut into slabs changes nothing.

    Args:
        case: with the companion as it was fused (aligned).
        fused: F (D, H, W) in [0, 1].
        variances: of F, (D, H, W) each, image units².
        where: (D, H, W), the voxels asked for.

    Yields:
        the slab's axial slices, and (n, COUNT) float32 for the voxels asked for in it, in their order.
    """
    depth, of_all = case.shape[0], (*_contrast(case), *_alignment(case))
    halo = reach(max(SIGMAS_MM) / case.spacing[0]) + 1
    for start in range(0, depth, SLAB):
        own = slice(start, min(start + SLAB, depth))
        asked = np.flatnonzero(where[own])
        if not asked.size:
            continue
        near = slice(max(0, start - halo), min(depth, own.stop + halo))
        keep = slice(start - near.start, own.stop - near.start)
        images = [case.anatomy[near], case.companion[near]]
        rois = [mask[near].astype(np.float32) for mask in case.masks.values()]
        columns = [column[keep].ravel()[asked] for column in _around(images, rois, case.spacing)]
        columns += _own(*(image[own].ravel()[asked] for image in (case.anatomy, case.companion, fused)))
        columns += [_log(np.sqrt(part[own].ravel()[asked])) for part in variances]
        columns += [roi[keep].ravel()[asked] for roi in rois]
        columns += [np.full(asked.size, value) for value in of_all]
        yield own, np.stack(columns, dtype=np.float32).T


def _contrast(case: Case) -> tuple[float, float]:
    """Of all that is bright in the companion: root mean square gap to the surroundings, and mean; 0 if nothing is.

    They tell how strong the borders are that a misregistration moves, which differs from scan to scan.
    """
    bright = case.companion > BRIGHT
    if not bright.any():
        return 0.0, 0.0
    gap = (case.companion - _blur(case.companion, SIGMAS_MM[0], case.spacing))[bright]
    return float(np.sqrt(np.mean(np.square(gap)))), float(case.companion[bright].mean())


def _alignment(case: Case) -> tuple[float, float]:
    """What was found before fusing, see clinfuse.alignment: motion that was not undone (mm), and gain of information.

    Both are 0 for a pair that was taken as it is. Its doubt is left out, a single difference that says little and by
    which fitting would learn cases by heart.
    """
    found = case.attrs.get("alignment")
    if found is None:
        return 0.0, 0.0
    left = 0.0 if found["used"] else found["motion_mm"]
    return left, found["information"] / max(found["information_before"], LEAST_INFORMATION) - 1


def _own(anatomy: FloatArray, companion: FloatArray, fused: FloatArray) -> list[FloatArray]:
    """Grey values of the voxel itself."""
    return [anatomy, companion, fused, _log(np.abs(fused - anatomy)), _log(np.abs(fused - companion))]


def _around(
    images: list[FloatArray], rois: list[FloatArray], spacing: tuple[float, float, float]
) -> Iterator[FloatArray]:
    """Per window and image: the voxel's gap to the mean, the standard deviation, the slope; per window how far the
    images' slopes agree (cosine, half as much at slopes of 0.01 per mm), and the masks' shares. Then both images'
    slopes at the voxel along every axis."""
    for sigma in SIGMAS_MM:
        smooth = [_blur(image, sigma, spacing) for image in images]
        slopes = [_slopes(image, spacing) for image in smooth]
        for image, mean, slope in zip(images, smooth, slopes, strict=True):
            yield image - mean
            yield _log(np.sqrt(np.maximum(_blur(np.square(image), sigma, spacing) - np.square(mean), 0)))
            yield _log(_length(slope))
        product = np.sum([a * b for a, b in zip(*slopes, strict=True)], axis=0)
        yield product / (_length(slopes[0]) * _length(slopes[1]) + SLOPE_FLOOR**2)
        yield from (_blur(roi, sigma, spacing) for roi in rois)
    for image in images:
        yield from (_log(np.abs(slope)) for slope in _slopes(image, spacing))


def _blur(image: FloatArray, sigma_mm: float, spacing: tuple[float, float, float]) -> FloatArray:
    if not image.any():
        return image
    sigmas = [sigma_mm / step if size > 1 else 0.0 for step, size in zip(spacing, image.shape, strict=True)]
    return blurred(image, sigmas)


def _slopes(image: FloatArray, spacing: tuple[float, float, float]) -> list[NDArray[Any]]:
    """Per mm along D, H and W; 0 along an axis of one voxel."""
    return [
        np.gradient(image, step, axis=axis) if image.shape[axis] > 1 else np.zeros_like(image)
        for axis, step in enumerate(spacing)
    ]


def _log(size: NDArray[Any]) -> FloatArray:
    """Sizes of all orders count alike: those of real and of simulated images differ by factors."""
    return np.asarray(np.log(size + FLOOR))


def _length(slope: list[NDArray[Any]]) -> FloatArray:
    return np.asarray(np.sqrt(np.sum([np.square(part) for part in slope], axis=0)))

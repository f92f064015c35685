"""Lesion metrics: Dice, surface Dice NSD@τ and HD95, with a declared value where a mask is empty.

| reference | prediction | Dice | NSD@τ | HD95 (mm)           | false volume (ml) | status of the row |
|-----------|------------|------|-------|---------------------|-------------------|-------------------|
| present   | present    | value| value | value               | —                 | ok                |
| present   | empty      | 0    | 0     | grid diagonal       | —                 | ok (a miss)       |
| empty     | present    | 0    | 0     | grid diagonal       | value             | empty             |
| empty     | empty      | 1    | 1     | 0                   | 0                 | empty             |

A miss counts in every mean, at the worst value the grid allows. A case without a lesion has no overlap to
measure: its values are declared but kept out of means (status `empty`, counted beside the mean), and what was
found there by mistake is reported as a volume of its own.

Reference: Maier-Hein et al. 2024, Metrics reloaded, Nat. Methods 21; Nikolov et al. 2018, arXiv 1809.04430.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.metrics.checks import as_mask, as_spacing, positive, same_shape
from clinfuse.metrics.surface import SurfaceDistances, bounding_box, distances_in_box

DEFAULT_TOLERANCE_MM = 2.0
NORMAL, MISSED, FALSE_ALARM, BOTH_EMPTY = "normal", "missed", "false alarm", "both empty"


@dataclass(frozen=True, kw_only=True)
class LesionScores:
    """One lesion mask against its reference.

    Attributes:
        dice, nsd: in [0, 1].
        hd95_mm: in mm, at most the grid's diagonal.
        situation: "normal", "missed", "false alarm" or "both empty": the row of the module's table.
        false_volume_ml: predicted volume where the reference is empty, else 0; ml.
        surfaces: the distances the scores came from, or None if a mask is empty.
    """

    dice: float
    nsd: float
    hd95_mm: float
    situation: str
    false_volume_ml: float = 0.0
    surfaces: SurfaceDistances | None = None

    @property
    def status(self) -> str:
        """ "ok" where a lesion exists, "empty" where the reference has none."""
        return "ok" if self.situation in (NORMAL, MISSED) else "empty"


def lesion_scores(
    reference: NDArray[Any],
    predicted: NDArray[Any],
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> LesionScores:
    """All three lesion metrics from one pass: masks cropped to their union, surfaces measured once.

    Args:
        reference, predicted: (D, H, W) or (H, W) binary masks on one grid.
        spacing_mm: voxel spacing in mm, array order.
        tolerance_mm: τ of the surface Dice, mm.

    Raises:
        GeometryError: shapes or spacing do not fit each other.
        InputError: a mask is not binary.
        ConfigError: the tolerance is not positive.
    """
    same_shape(reference=reference, predicted=predicted)
    a, b = as_mask("the reference mask", reference), as_mask("the predicted mask", predicted)
    spacing = as_spacing(spacing_mm, a.ndim)
    positive("tolerance_mm", tolerance_mm)
    full_shape = a.shape
    box = bounding_box(a, b)
    a, b = a[box], b[box]
    size_a, size_b = int(np.count_nonzero(a)), int(np.count_nonzero(b))
    if not (size_a and size_b):
        return _empty_scores(size_a, size_b, full_shape, spacing)
    if len(full_shape) == 3 and full_shape[0] == 1:
        a, b, spacing = a[0], b[0], spacing[1:]
    surfaces = distances_in_box(a, b, spacing)
    return LesionScores(
        dice=2.0 * int(np.count_nonzero(a & b)) / (size_a + size_b),
        nsd=surfaces.overlap(tolerance_mm),
        hd95_mm=surfaces.hausdorff(95.0),
        situation=NORMAL,
        surfaces=surfaces,
    )


def dice(reference: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Volume overlap 2|A∩B| / (|A|+|B|) in [0, 1]; empty masks as in the module's table.

    Args:
        reference, predicted: binary masks of one shape.
    """
    same_shape(reference=reference, predicted=predicted)
    a, b = as_mask("the reference mask", reference), as_mask("the predicted mask", predicted)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def nsd(
    reference: NDArray[Any],
    predicted: NDArray[Any],
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> float:
    """Surface Dice at tolerance τ in [0, 1]; arguments and empty masks as in `lesion_scores`."""
    return lesion_scores(reference, predicted, spacing_mm, tolerance_mm).nsd


def hd95(reference: NDArray[Any], predicted: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in mm; arguments and empty masks as in `lesion_scores`."""
    return lesion_scores(reference, predicted, spacing_mm).hd95_mm


def grid_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length in mm of the grid's diagonal: the largest distance two surfaces on it can have."""
    return float(np.linalg.norm(np.asarray(shape) * np.asarray(spacing_mm)))


def _empty_scores(
    size_a: int, size_b: int, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> LesionScores:
    if not size_a and not size_b:
        return LesionScores(dice=1.0, nsd=1.0, hd95_mm=0.0, situation=BOTH_EMPTY)
    voxel_ml = float(np.prod(spacing)) / 1000.0
    return LesionScores(
        dice=0.0,
        nsd=0.0,
        hd95_mm=grid_diagonal_mm(shape, spacing),
        situation=MISSED if size_a else FALSE_ALARM,
        false_volume_ml=0.0 if size_a else size_b * voxel_ml,
    )

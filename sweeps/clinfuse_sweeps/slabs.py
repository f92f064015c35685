"""Which slices of a case a trial looks at: a slab in which lesion, brain and bone are all to be seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinfuse.case import ROIS, Case
from clinfuse.errors import ConfigError


def choose_slab(case: Case, slices: int) -> tuple[int, int]:
    """Start and stop of the axial slab of that many slices that shows most of all present ROIs.

    Each ROI's share of voxels inside the slab, relative to the best slab for that ROI, is taken; the slab with
    the largest product wins, so that no ROI is left out for the sake of another. Ties: the lowest slab.

    Args:
        case: (D, H, W) volumes and masks.
        slices: thickness in slices, ≥ 1; a case with fewer slices is taken whole.

    Raises:
        ConfigError: slices < 1.
    """
    if slices < 1:
        raise ConfigError("too few slices", expected="slices >= 1", found=f"{slices=}")
    depth = case.shape[0]
    if slices >= depth:
        return 0, depth
    score = np.ones(depth - slices + 1)
    for roi in ROIS:
        inside = slab_sums(getattr(case, roi).reshape(depth, -1).sum(axis=1, dtype=np.int64), slices)
        if inside.max() > 0:
            score *= inside / inside.max()
    start = int(score.argmax())
    return start, start + slices


def slab_sums(per_slice: NDArray[np.int64], slices: int) -> NDArray[np.int64]:
    """(D − slices + 1,) sums over every window of that many neighbouring slices."""
    total = np.concatenate([[0], np.cumsum(per_slice)])
    return total[slices:] - total[:-slices]


def cut(case: Case, slices: int | None) -> Case:
    """The case's chosen slab as a case of its own; None keeps the whole."""
    if slices is None:
        return case
    start, stop = choose_slab(case, slices)
    return case if (start, stop) == (0, case.shape[0]) else case.slices(start, stop)

"""Where to put a crop: drawn around lesions, bone borders, brain, or anywhere in the head, by stated shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import Case

MOST_POINTS = 40_000


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of crops centred on each kind of place; a place that a case lacks gives its share to the others.

    Attributes:
        lesion, bone_edge, brain, head: relative weights, all >= 0.
    """

    lesion: float = 0.3
    bone_edge: float = 0.25
    brain: float = 0.35
    head: float = 0.1


AROUND_LESIONS = Shares(lesion=0.6, bone_edge=0.15, brain=0.2, head=0.05)
"""For learning to find lesions."""


def centres(case: Case, seed: int = 0) -> dict[str, NDArray[np.int32]]:
    """Candidate crop centres of a case by kind: (N, 3) voxel indices (d, h, w), at most 40 000 each.

    Args:
        seed: of the thinning, which is the same for equal seeds.
    """
    bone = case.bone > 0
    edge = bone & ~_shrunk(bone)
    head = (case.anatomy > 0.05) | (case.companion > 0.05)
    kinds = {"lesion": case.lesion > 0, "bone_edge": edge, "brain": case.brain > 0, "head": head}
    rng = np.random.default_rng(seed)
    found = {}
    for name, mask in kinds.items():
        points = np.argwhere(mask).astype(np.int32)
        if len(points) > MOST_POINTS:
            points = points[np.sort(rng.choice(len(points), MOST_POINTS, replace=False))]
        if len(points):
            found[name] = points
    return found


def draw_centre(
    found: dict[str, NDArray[np.int32]], shares: Shares, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[int, int, int]:
    """One centre (d, h, w): first the kind by its share, then a place of that kind; the middle if there is none."""
    names = [name for name in found if getattr(shares, name) > 0]
    if not names:
        d, h, w = shape
        return d // 2, h // 2, w // 2
    left = rng.random() * sum(getattr(shares, name) for name in names)
    for name in names:
        left -= getattr(shares, name)
        if left < 0:
            break
    points = found[name]
    d, h, w = points[int(rng.random() * len(points))].tolist()
    return d, h, w


def crop_start(centre: int, size: int, length: int, rng: np.random.Generator) -> int:
    """Start of a crop of `size` in an axis of `length` that holds the centre, shifted by up to a quarter crop.

    Negative if the axis is shorter than the crop: then the crop is padded evenly.
    """
    if length <= size:
        return -((size - length) // 2)
    shift = int(rng.random() * (2 * (size // 4) + 1)) - size // 4
    return min(max(centre - size // 2 + shift, 0), length - size)


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.stack([ndimage.binary_erosion(plane) for plane in mask])

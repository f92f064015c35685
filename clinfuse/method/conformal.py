"""Case-balanced samples of voxels and their conformal quantiles (Section 3.4).

Voxels of one case are not exchangeable; cases are. So each case weighs the same in a sample, however large it
is, and a voxel drawn by region stands for as many as it was drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import GeometryError

REGIONS = ("outside", "brain", "bone", "lesion")
"""Where masks overlap, the later name holds; outside is what no mask covers."""
VOXELS_PER_CASE = 20_000
"""At most this many voxels of each region of each volume are used, drawn at random."""


def regions(shape: tuple[int, ...], rois: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Label of each voxel, an index into `REGIONS`, from masks (D, H, W) by name."""
    labels = np.zeros(shape, dtype=np.uint8)
    for label, name in enumerate(REGIONS[1:], start=1):
        if name in rois:
            mask = np.asarray(rois[name])
            if mask.shape != shape:
                raise GeometryError(
                    f"{name} does not lie on the uncertainty's grid",
                    expected=f"{shape}",
                    found=f"{mask.shape}",
                )
            labels[mask > 0] = label
    return labels


@dataclass(frozen=True, kw_only=True)
class VoxelSample:
    """Voxels drawn from the cases: raw std, |error|, region, case number and weight, each (n,)."""

    std: NDArray[np.float64]
    error: NDArray[np.float64]
    region: NDArray[np.uint8]
    case: NDArray[np.intp]
    weight: NDArray[np.float64]


def subsample(
    std: NDArray[Any],
    error: NDArray[Any],
    rois: Mapping[str, NDArray[Any]],
    case: int,
    rng: np.random.Generator,
) -> VoxelSample:
    """Up to `VOXELS_PER_CASE` voxels of each region; a weight is the number of voxels that one stands for."""
    labels = regions(std.shape, rois).ravel()
    index, weight = draw_voxels(labels, rng)
    return VoxelSample(
        std=std.ravel()[index].astype(np.float64),
        error=np.abs(error.ravel()[index].astype(np.float64)),
        region=labels[index],
        case=np.full(len(index), case),
        weight=weight,
    )


def draw_voxels(
    labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Up to `VOXELS_PER_CASE` voxels of each region of one volume.

    Args:
        labels: (N,) as of `regions`.

    Returns:
        Their indices (n,), and how many voxels each stands for.
    """
    chosen, weights = [], []
    for label in range(len(REGIONS)):
        index = np.flatnonzero(labels == label)
        kept = rng.choice(index, VOXELS_PER_CASE, replace=False) if len(index) > VOXELS_PER_CASE else index
        chosen.append(np.sort(kept))
        weights.append(np.full(len(kept), len(index) / max(len(kept), 1)))
    return np.concatenate(chosen), np.concatenate(weights)


def balanced(parts: Sequence[VoxelSample]) -> VoxelSample:
    """The parts as one sample in which every case has the same weight; weights sum to 1."""
    joined: dict[str, Any] = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(VoxelSample)
    }
    joined["weight"] = case_weights(joined["weight"], joined["case"])[0]
    return VoxelSample(**joined)


def case_weights(weight: NDArray[Any], case: NDArray[np.intp]) -> tuple[NDArray[np.float64], int]:
    """Weights with equal sums per case, summing to 1, and the number of cases with any."""
    totals = np.bincount(case, weights=weight)
    count = int((totals > 0).sum())
    return weight / totals[case] / count, count


def conformal(score: NDArray[Any], weight: NDArray[Any], coverage: float) -> float:
    """The weighted quantile at level coverage · (n + 1)/n, n the effective number of voxels (Σw)²/Σw².

    Reference: Lei et al. 2018, arXiv:1604.04173 (split conformal).
    """
    n = weight.sum() ** 2 / np.square(weight).sum()
    return _quantile(score, weight, min(1.0, coverage * (n + 1) / n))


def hierarchical(score: NDArray[Any], weight: NDArray[Any], coverage: float, cases: int) -> float | None:
    """The same with mass 1/(cases + 1) at infinity; None where that leaves too little for the coverage.

    Reference: Lee, Barber and Willett 2023, arXiv:2306.06342 (hierarchical conformal).
    """
    level = coverage * (cases + 1) / cases
    return _quantile(score, weight, level) if level <= 1 else None


def _quantile(values: NDArray[Any], weight: NDArray[Any], level: float) -> float:
    """The smallest value with at least this share of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    rank = int(np.searchsorted(share, level - 1e-12))
    return float(values[order[min(rank, len(order) - 1)]])

"""Fits the error head on cases whose true error is known (Section 3.4, see clinfuse.method.error_head)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clinfuse.case import Case, FloatArray
from clinfuse.errors import InputError
from clinfuse.method.calibration import EPSILON
from clinfuse.method.conformal import REGIONS, regions
from clinfuse.method.error_features import COUNT, IN_BRAIN, BoolArray, features, only_brain
from clinfuse.method.error_head import ErrorHead
from clinfuse.method.perceptrons import Perceptrons, scaled
from clinfuse.method.variances import Variances
from clinfuse.training.loop import fit
from clinfuse.training.losses import Batch

VOXELS = 4000
"""At most so many of each region of a case."""
SINGLE_SLICES = 6
"""So many axial slices of a case are also seen alone, as a slice without neighbours is fused, too."""
THICK = 3
"""Every third slice of a case is also seen as a volume of its own, as many scans have slices of 5 mm."""
BATCH, ALIKE, LEARNING_RATE = 4096, 64, 3e-3
LEAST_STEPS, EPOCHS = 200, 12
"""Of each network: every voxel is drawn 12 times, but for very few or very many."""
NETWORKS = 3
"""What only one of them believes of images that differ from all cases weighs little in their mean (Lakshminarayanan et
al., arXiv:1612.01474)."""
RARE = 0.999
CONSTANT = 1e-6
"""What varied less in fitting teaches nothing, and counts for nothing later however different it is."""


class Shape(NamedTuple):
    """Of the networks of one part of the head: units of each layer, the share left out in fitting, the most steps."""

    hidden: tuple[int, ...]
    dropout: float
    most_steps: int


BRAIN, ELSEWHERE = Shape((16, 16), 0.0, 1_500), Shape((64, 64, 64), 0.1, 16_000)
"""Elsewhere 41 features tell of each patient what holds for no other: dropout (Srivastava et al., JMLR 2014)."""


class ErrorRows(NamedTuple):
    """Voxels of one case: features (n, COUNT), |F − x₀| (n,), label of the region (n,), total variance (n,)."""

    features: FloatArray
    error: FloatArray
    region: NDArray[np.uint8]
    variance: FloatArray


def error_rows(
    case: Case,
    fused: FloatArray,
    variances: Variances,
    error: FloatArray,
    known: BoolArray,
    rng: np.random.Generator,
) -> ErrorRows:
    """Voxels of a case drawn by region; also of some of its slices as if each, or every third, were all there is.

    Args:
        case: with the companion as it was fused.
        fused, variances: see `ErrorHead.std`.
        error: |F − x₀| (D, H, W), image units.
        known: (D, H, W), where that error is one.
        rng: draws them.
    """
    depths = np.flatnonzero(known.any(axis=(1, 2)))
    singles = np.sort(rng.choice(depths, min(SINGLE_SLICES, len(depths)), replace=False))
    cuts = [slice(None), slice(None, None, THICK), *(slice(int(z), int(z) + 1) for z in singles)]
    parts = []
    for number, cut in enumerate(cuts):
        part = _cut(case, cut)
        labels = regions(part.shape, part.masks)
        share = VOXELS if number < 2 else VOXELS // len(singles)
        where = _drawn(labels, known[cut], share, rng)
        own = Variances(*(variance[cut] for variance in variances))
        rows = [row for _, row in features(part, fused[cut], own, where)]
        looked = np.concatenate(rows) if rows else np.empty((0, COUNT), np.float32)
        parts.append(ErrorRows(looked, error[cut][where], labels[where], own.total[where]))
    return ErrorRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def fit_error_head(rows: Sequence[ErrorRows], *, seed: int = 0) -> ErrorHead:
    """Least squares on log(|F − x₀| + ε); each region counts the same, by its own spread.

    Args:
        rows: of each case, see `error_rows`.
        seed: of every network's first weights and batches.

    The same rows and seed give the same head on the same machine.

    Raises:
        InputError: no voxel at all.
    """
    if not any(len(one.error) for one in rows):
        raise InputError(
            "the error head has nothing to learn from",
            expected="training cases with a head in them: grey values above air, or a mask",
            found=f"{len(rows)} cases without a single such voxel",
            todo="look at the training cases with clinfuse inspect",
        )
    brain = [only_brain(one.features) for one in rows]
    elsewhere = [~part for part in brain]

    def fitted(
        shape: Shape, own: list[BoolArray], others: list[BoolArray], columns: list[int] | slice
    ) -> Perceptrons:
        """A part without a voxel learns from the other's."""
        part = own if any(each.any() for each in own) else others
        return _fitted(*_of_part(rows, part, columns), shape, seed)

    return ErrorHead(
        brain=fitted(BRAIN, brain, elsewhere, IN_BRAIN),
        elsewhere=fitted(ELSEWHERE, elsewhere, brain, slice(None)),
        ceiling=float(np.quantile(np.concatenate([one.variance for one in rows]), RARE)),
    )


def _of_part(
    rows: Sequence[ErrorRows], part: Sequence[BoolArray], columns: list[int] | slice
) -> tuple[FloatArray, FloatArray, NDArray[np.uint8]]:
    """Features, log errors and regions of those voxels of all cases; picked case by case, to hold all but once."""
    picked = list(zip(rows, part, strict=True))
    looked = np.concatenate([one.features[:, columns][own] for one, own in picked])
    error = np.concatenate([one.error[own] for one, own in picked])
    region = np.concatenate([one.region[own] for one, own in picked])
    return looked, np.log(error + EPSILON, dtype=np.float32), region


def _fitted(
    looked: FloatArray, size: FloatArray, region: NDArray[np.uint8], shape: Shape, seed: int
) -> Perceptrons:
    """Networks fitted on features (n, features), log errors (n,) and labels of the regions (n,)."""
    mean, spread = looked.mean(axis=0), looked.std(axis=0)
    scale = np.where(spread > CONSTANT, spread, np.float32(np.inf))
    seen, wanted = torch.from_numpy(scaled(looked, mean, scale)), torch.from_numpy(size)
    weight = torch.from_numpy(_region_weights(size, region))
    networks = [_network(seen, wanted, weight, shape, seed * NETWORKS + number) for number in range(NETWORKS)]
    layers = list(zip(*([part for part in n if isinstance(part, nn.Linear)] for n in networks), strict=True))
    return Perceptrons(
        mean=mean,
        scale=scale,
        weights=tuple(np.stack([one.weight.detach().numpy() for one in layer]) for layer in layers),
        biases=tuple(np.stack([one.bias.detach().numpy() for one in layer]) for layer in layers),
    )


def _network(seen: Tensor, wanted: Tensor, weight: Tensor, shape: Shape, seed: int) -> nn.Sequential:
    """One network, fitted on scaled rows (n, features), their log errors (n,) and weights (n,)."""
    generator = torch.Generator().manual_seed(seed)

    def batches(step: int) -> Batch:
        index = torch.randint(len(seen), (BATCH,), generator=generator)
        return {"features": seen[index], "size": wanted[index], "weight": weight[index]}

    steps = min(max(EPOCHS * len(seen) // BATCH, LEAST_STEPS), shape.most_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _fresh(seen.shape[1], shape)
        fit(network, _loss, batches, steps=steps, learning_rate=LEARNING_RATE)
    return network


def _fresh(features: int, shape: Shape) -> nn.Sequential:
    sizes = (features, *shape.hidden)
    hidden = [(nn.Linear(a, b), nn.ReLU(), _Dropout(shape.dropout)) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for layer in hidden for part in layer), nn.Linear(sizes[-1], 1))


class _Dropout(nn.Module):
    """Dropout that leaves a unit out for `ALIKE` rows of a batch at once: to draw it for each would take longer than
    the rest of a step, and rows are in no order."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, rows: Tensor) -> Tensor:
        if not (self.training and self.share):
            return rows
        groups = rows.view(-1, ALIKE, rows.shape[1])
        kept = functional.dropout(rows.new_ones(len(groups), 1, rows.shape[1]), self.share)
        return (groups * kept).view_as(rows)


def _cut(case: Case, cut: slice) -> Case:
    """Some axial slices as a case of its own; where they lie in the world does not matter here, their spacing does."""
    affine = case.affine.copy()
    affine[:3, 2] *= cut.step or 1
    arrays = {name: getattr(case, name)[cut] for name in ("anatomy", "companion", *case.masks)}
    return replace(case, affine=affine, aligned_companion=None, chroma=None, **arrays)


def _drawn(labels: NDArray[np.uint8], known: BoolArray, share: int, rng: np.random.Generator) -> BoolArray:
    """At most that many known voxels of each region."""
    chosen = np.zeros(labels.size, dtype=bool)
    for label in range(len(REGIONS)):
        index = np.flatnonzero((labels == label) & known)
        chosen[rng.choice(index, min(share, len(index)), replace=False)] = True
    return chosen.reshape(labels.shape)


def _region_weights(size: FloatArray, region: NDArray[np.uint8]) -> FloatArray:
    """(n,), mean 1: the same sum over the regions' variances for each region that has voxels."""
    weight = np.zeros(len(size), dtype=np.float32)
    for label in np.unique(region):
        here = region == label
        weight[here] = 1 / (here.sum() * (size[here].var() + 1e-6))
    return weight / weight.mean()


def _loss(module: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    loss = (batch["weight"] * (module(batch["features"])[:, 0] - batch["size"]).square()).mean()
    return loss, {"loss": float(loss.detach())}

"""How much each part of the predicted variance is worth, by region (Section 3.4).

The law of total variance adds aleatoric, epistemic and registration variance as if each were known exactly. Each is an
estimate with a scale of its own: members that saw the same patients agree too much, a small misregistration moves only
what the companion shows. On validation cases, where the error is known, the squared error of a region is regressed on
the three and a constant, all weights 0 or more:

    E[error²] = w_a·aleatoric + w_e·epistemic + w_r·registration + w_c

References: law of total variance for ensembles, Lakshminarayanan et al. 2017, arXiv:1612.01474; non-negative least
squares, Lawson and Hanson 1974, chapter 23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinfuse.method.conformal import REGIONS, case_weights, draw_voxels, regions

MIN_VOXELS = 50
"""A region with fewer voxels in all fitting cases gets no weights, and no factor, of its own."""
CONSTANT = 1e-3
"""The unit of the constant, so that all four columns are of like size, image units²."""

Weights = tuple[float, float, float, float]
LAW_OF_TOTAL_VARIANCE: Weights = (1.0, 1.0, 1.0, 0.0)


class Variances(NamedTuple):
    """Aleatoric, epistemic and registration variance, arrays of one shape in image units²."""

    aleatoric: NDArray[Any]
    epistemic: NDArray[Any]
    registration: NDArray[Any]


def weighted_std(
    variances: Variances, rois: Mapping[str, NDArray[Any]], weights: Mapping[str, Weights | None]
) -> NDArray[np.float32]:
    """Predicted standard deviation of the error, image units, of the variances' shape.

    Args:
        variances: of one case.
        rois: masks by name: brain, bone, lesion; a missing one is taken as empty.
        weights: (w_a, w_e, w_r, w_c) by region; where there are none, the plain sum of the three.
    """
    rows = [weights.get(name) or LAW_OF_TOTAL_VARIANCE for name in REGIONS]
    table = np.array(rows, dtype=np.float32)
    labels = regions(variances.aleatoric.shape, rois)
    total = table[:, 3][labels]
    for part, column in zip(variances, table.T, strict=False):
        total += column[labels] * part
    return np.sqrt(total)


def fit_weights(
    variances: Sequence[Variances],
    error: Sequence[NDArray[Any]],
    rois: Sequence[Mapping[str, NDArray[Any]]],
    case_ids: Sequence[str],
    seed: int = 0,
) -> dict[str, Weights | None]:
    """Weights by region; None where there are too few voxels.

    Args:
        variances, error, rois: per volume; error is F − x₀ or its magnitude, image units.
        case_ids: per volume; every case counts the same, however many volumes and voxels it has.
        seed: of the subsampling.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(case_ids))}
    columns, squares, labels, masses, cases = [], [], [], [], []
    for i, (parts, wrong, masks) in enumerate(zip(variances, error, rois, strict=True)):
        own = regions(wrong.shape, masks).ravel()
        index, mass = draw_voxels(own, np.random.default_rng((seed, i)))
        columns.append(np.stack([part.ravel()[index].astype(np.float64) for part in parts], axis=1))
        squares.append(np.square(wrong.ravel()[index].astype(np.float64)))
        labels.append(own[index])
        masses.append(mass)
        cases.append(np.full(len(index), number[case_ids[i]]))
    joined = (np.concatenate(rows) for rows in (columns, squares, labels, masses, cases))
    column, square, label, mass, case = joined
    found: dict[str, Weights | None] = {}
    for code, name in enumerate(REGIONS):
        here = label == code
        enough = int(here.sum()) >= MIN_VOXELS
        found[name] = _regression(column[here], square[here], mass[here], case[here]) if enough else None
    return found


def _regression(
    column: NDArray[Any], square: NDArray[Any], mass: NDArray[Any], case: NDArray[np.intp]
) -> Weights:
    """Weighted non-negative least squares of (n,) on (n, 3) and a constant."""
    from scipy.optimize import nnls

    root = np.sqrt(case_weights(mass, case)[0])[:, None]
    design = np.concatenate([column, np.full((len(column), 1), CONSTANT)], axis=1)
    weights, _ = nnls(design * root, square * root[:, 0])
    a, e, r, c = (float(value) for value in weights)
    return a, e, r, c * CONSTANT

"""What a trained probe reaches on a held-out case, as rows: its lesion, the lesion's centre, and the landmarks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clinfuse.case import FloatArray, MaskArray
from clinfuse.evaluation.case import lesion_rows
from clinfuse.evaluation.downstream import Probe, ProbeCase
from clinfuse.evaluation.places import Point, apart_mm, centre, inside, located
from clinfuse.evaluation.rows import RowMaker
from clinfuse.metrics.lesion import grid_diagonal_mm, lesion_scores

Rows = list[dict[str, Any]]


def probe_rows(maker: RowMaker, probe: Probe, case: ProbeCase, tolerance_mm: float) -> Rows:
    """Lesion scores and landmark errors of one held-out case.

    Args:
        tolerance_mm: τ of the surface Dice.
    """
    maps = probe.maps(case)
    found = (maps[0] >= 0.5).astype(np.uint8)
    rows = lesion_rows(maker, lesion_scores(case.lesion, found, case.spacing, tolerance_mm))
    rows.append(maker.row("landmark", "lesion centre", centre_error_mm(case, found)))
    return rows + landmark_rows(maker, probe, case, maps[1:])


def centre_error_mm(case: ProbeCase, found: MaskArray) -> float:
    """Distance of the centres of the lesion and of what was found (D, H, W); NaN without a lesion.

    A missed lesion counts with the grid's diagonal.
    """
    wanted, got = centre(case.lesion), centre(found)
    if wanted is None:
        return math.nan
    if got is None:
        return grid_diagonal_mm(case.lesion.shape, case.spacing)
    return apart_mm(wanted, got, case.spacing)


def landmark_rows(maker: RowMaker, probe: Probe, case: ProbeCase, heat: FloatArray) -> Rows:
    """The error of each of the probe's landmarks, mm, and their mean; no rows where it has learned none.

    A landmark that the case does not know, or that lies outside of what was read of it, where no network can see it, is
    empty and not in the mean.

    Args:
        heat: (K, D, H, W), a map per name of the probe.
    """
    if not probe.names:
        return []
    places = located(heat, probe.names, case.spacing, probe.config.sigma_mm)
    errors = {name: _error_mm(case, name, place) for name, place in places.items()}
    seen = [error for error in errors.values() if not math.isnan(error)]
    rows = [maker.row("landmark", "mean", float(np.mean(seen)) if seen else math.nan)]
    return rows + [maker.row("landmark", name, error) for name, error in errors.items()]


def _error_mm(case: ProbeCase, name: str, place: Point) -> float:
    wanted = case.landmarks.get(name)
    if wanted is None or not inside(wanted, case.lesion.shape):
        return math.nan
    return apart_mm(place, wanted, case.spacing)

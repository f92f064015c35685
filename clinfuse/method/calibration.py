"""Calibration of the predicted uncertainty: from raw standard deviation to what it is worth (Section 3.4).

Fitted on validation cases only, where the true error is known. The raw standard deviation is the error head's
(clinfuse.method.error_head), or the root of the total variance. Three answers for it at a voxel:

- `uncertainty`: probability in [0, 1] that |error| exceeds a stated tolerance (isotonic regression);
- `expected_error`: expected |error| (isotonic regression);
- `interval`: half width q · (std + ε), q the split-conformal quantile of |error| / (std + ε), per ROI.

What is guaranteed. Voxels of one case are not exchangeable; cases are. So every case counts the same, however
large, and the coverage meant is that of a random voxel of a random new case. The plain factor q is the
case-balanced quantile at level (1 − a)(n + 1)/n, n the effective number of voxels: coverage is met on average
as the number of cases K grows, with an error of order 1/√K × the spread of coverage between cases. The
guaranteed factor puts mass 1/(K + 1) at infinity (level (1 − a)(K + 1)/K) and covers at least 1 − a for any
distribution of cases, but does not exist for K < (1 − a)/a (9 cases at 90 %) and is wide for few cases.
References: Lei et al. 2018 (locally weighted conformal), arXiv:1604.04173; Dunn, Wasserman and Ramdas 2018
(case-balanced pooling), arXiv:1809.07441; Lee, Barber and Willett 2023 (the guarantee), arXiv:2306.06342.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import ConfigError, GeometryError, InputError
from clinfuse.method.conformal import (
    REGIONS,
    balanced,
    case_weights,
    conformal,
    hierarchical,
    regions,
    subsample,
)
from clinfuse.method.knots import Knots, isotonic

EPSILON = 1 / 510
"""ε: half a grey level of an 8-bit image. A constant, as a fitted ε would void the guarantee."""
FORMAT = "clinfuse-calibration-4"
MIN_VOXELS = 50
"""A region with fewer voxels in all fitting cases gets no map, and no factor, of its own."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a raw predicted std is worth.

    Attributes:
        tolerance: |error| above this, in image units [0, 1], is the event whose probability is predicted.
        coverage: nominal coverage 1 − a of the intervals.
        epsilon: ε, added to std before scaling, image units.
        event, magnitude: maps std → probability of the event, and std → expected |error|; all regions.
        event_by_region, magnitude_by_region: the same within a region; None: too few voxels, use the former.
        factors: conformal q by region; None: too few voxels, `pooled_factor` holds instead.
        guaranteed_factors: the same with the finite-sample guarantee over cases; None: too few cases.
        cases: number of cases K the fit has seen.
        voxels: voxels used, by region.
        companions: kinds of companion it was fitted on, e.g. ("CT",); of others it promises nothing.
        notes: what is missing, in words; empty when nothing is.
    """

    tolerance: float
    coverage: float
    epsilon: float
    event: Knots
    magnitude: Knots
    event_by_region: Mapping[str, Knots | None]
    magnitude_by_region: Mapping[str, Knots | None]
    factors: Mapping[str, float | None]
    pooled_factor: float
    guaranteed_factors: Mapping[str, float | None]
    cases: int
    voxels: Mapping[str, int]
    companions: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def uncertainty(self, std: NDArray[Any], rois: Mapping[str, NDArray[Any]] | None = None) -> FloatArray:
        """Probability that |error| exceeds the tolerance.

        Args:
            std: (D, H, W) raw predicted standard deviation, image units.
            rois: masks (D, H, W) by name; with them each region's own map is used.

        Returns: (D, H, W) float32 in [0, 1], never decreasing in std (within a region, if rois are given).
        """
        return self._mapped(std, rois, self.event, self.event_by_region)

    def expected_error(self, std: NDArray[Any], rois: Mapping[str, NDArray[Any]] | None = None) -> FloatArray:
        """Expected |error| in image units; arguments as in `uncertainty`."""
        return self._mapped(std, rois, self.magnitude, self.magnitude_by_region)

    def interval(
        self, std: NDArray[Any], rois: Mapping[str, NDArray[Any]], guaranteed: bool = False
    ) -> FloatArray:
        """Half width of the conformal interval around F, q · (std + ε).

        Args:
            std: (D, H, W) raw predicted standard deviation, image units.
            rois: masks (D, H, W) by name: brain, bone, lesion; a missing one is taken as empty.
            guaranteed: use the factors with the finite-sample guarantee.

        Returns: (D, H, W) float32, image units; infinite where no guarantee can be given with so few cases.
        """
        if guaranteed:
            q = [self.guaranteed_factors[name] for name in REGIONS]
            table = np.array([np.inf if value is None else value for value in q])
        else:
            plain = [self.factors[name] for name in REGIONS]
            table = np.array([self.pooled_factor if value is None else value for value in plain])
        return (table[regions(std.shape, rois)] * (std + self.epsilon)).astype(np.float32)

    def _mapped(
        self,
        std: NDArray[Any],
        rois: Mapping[str, NDArray[Any]] | None,
        pooled: Knots,
        by_region: Mapping[str, Knots | None],
    ) -> FloatArray:
        result = pooled(std)
        if rois is not None:
            labels = regions(std.shape, rois)
            for label, name in enumerate(REGIONS):
                own = by_region[name]
                if own is not None:
                    result[labels == label] = own(std[labels == label])
        return result.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same calibration back, to the last bit."""
        lists = {"companions": list(self.companions), "notes": list(self.notes)}
        return {"format": FORMAT, **asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` described.

        Raises:
            InputError: another format, a missing or unknown entry, or knots that are not monotone.
        """
        rest = {key: value for key, value in values.items() if key != "format"}
        wanted = {f.name for f in fields(cls)}
        if values.get("format") != FORMAT or set(rest) != wanted:
            raise InputError(
                "this is no calibration of ours",
                expected=f"format {FORMAT} with {', '.join(sorted(wanted))}",
                found=f"format {values.get('format')!r} with {', '.join(sorted(rest))}",
                todo="run clinfuse calibrate again",
            )
        for key in ("event", "magnitude"):
            rest[key] = Knots.from_dict(rest[key])
            name = f"{key}_by_region"
            rest[name] = {k: None if v is None else Knots.from_dict(v) for k, v in rest[name].items()}
        by_region = ("event_by_region", "magnitude_by_region", "factors", "guaranteed_factors", "voxels")
        if any(set(rest[name]) != set(REGIONS) for name in by_region):
            raise InputError("calibration lacks a region", expected=", ".join(REGIONS))
        return cls(**{**rest, "companions": tuple(rest["companions"]), "notes": tuple(rest["notes"])})


def fit_calibration(
    std: Sequence[NDArray[Any]],
    error: Sequence[NDArray[Any]],
    rois: Sequence[Mapping[str, NDArray[Any]]],
    tolerance: float = 0.05,
    coverage: float = 0.9,
    seed: int = 0,
    case_ids: Sequence[str] | None = None,
    companions: Sequence[str] = ("CT",),
) -> Calibration:
    """Fit maps and factors on validation cases.

    Args:
        std: per volume (D, H, W), raw predicted standard deviation, image units.
        error: per volume (D, H, W), F − x₀ (or its magnitude), image units.
        rois: per volume masks by name (brain, bone, lesion); a missing one is taken as empty.
        tolerance: |error| above this is the event, image units.
        coverage: nominal coverage of the intervals, in (0, 1).
        seed: of the subsampling.
        case_ids: per volume; volumes of the same patient must share one, as they count as one case.
        companions: kinds of companion among them.

    Raises:
        ConfigError: tolerance or coverage out of range.
        InputError: no volume, lists of different length, or non-finite or negative std.
        GeometryError: arrays of one volume differ in shape.
    """
    _check(std, error, rois, tolerance, coverage, case_ids)
    names = list(case_ids) if case_ids is not None else [str(i) for i in range(len(std))]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    parts = [
        subsample(s, e, r, number[names[i]], np.random.default_rng((seed, i)))
        for i, (s, e, r) in enumerate(zip(std, error, rois, strict=True))
    ]
    sample = balanced(parts)
    score = sample.error / (sample.std + EPSILON)
    event = (sample.error > tolerance).astype(float)
    by_region: dict[str, dict[str, Any]] = {k: dict.fromkeys(REGIONS) for k in ("event", "size", "q", "safe")}
    notes = []
    for label, name in enumerate(REGIONS):
        here = sample.region == label
        if here.sum() < MIN_VOXELS:
            known = f"{int(here.sum())} voxels of known error, too few"
            notes.append(f"{name}: {known}: the maps and the factor of all regions together are used there")
            continue
        weight, cases = case_weights(sample.weight[here], sample.case[here])
        by_region["event"][name] = isotonic(sample.std[here], event[here], weight)
        by_region["size"][name] = isotonic(sample.std[here], sample.error[here], weight)
        by_region["q"][name] = conformal(score[here], weight, coverage)
        by_region["safe"][name] = hierarchical(score[here], weight, coverage, cases)
        if by_region["safe"][name] is None:
            notes.append(f"{name}: {cases} cases, too few for a guaranteed factor at {coverage:g}")
    return Calibration(
        tolerance=float(tolerance),
        coverage=float(coverage),
        epsilon=EPSILON,
        event=isotonic(sample.std, event, sample.weight),
        magnitude=isotonic(sample.std, sample.error, sample.weight),
        event_by_region=by_region["event"],
        magnitude_by_region=by_region["size"],
        factors=by_region["q"],
        pooled_factor=conformal(score, sample.weight, coverage),
        guaranteed_factors=by_region["safe"],
        cases=len(number),
        voxels={name: int((sample.region == label).sum()) for label, name in enumerate(REGIONS)},
        companions=tuple(sorted(set(companions))),
        notes=tuple(notes),
    )


def _check(
    std: Sequence[NDArray[Any]],
    error: Sequence[NDArray[Any]],
    rois: Sequence[Mapping[str, NDArray[Any]]],
    tolerance: float,
    coverage: float,
    case_ids: Sequence[str] | None,
) -> None:
    if not tolerance > 0 or not 0 < coverage < 1:
        raise ConfigError(
            "impossible calibration",
            expected="tolerance > 0 and 0 < coverage < 1",
            found=f"{tolerance=}, {coverage=}",
        )
    lengths = [len(std), len(error), len(rois), len(std if case_ids is None else case_ids)]
    if not std or len(set(lengths)) > 1:
        raise InputError(
            "calibration needs matching lists",
            expected="at least one volume, and as many errors, masks and case ids",
            found=f"{lengths} std, error, rois, case ids",
        )
    for i, (s, e) in enumerate(zip(std, error, strict=True)):
        name = str(i) if case_ids is None else case_ids[i]
        if s.shape != e.shape:
            raise GeometryError(
                "std and error differ in shape", expected=f"{s.shape}", found=f"{e.shape}", case=name
            )
        if not (np.isfinite(s).all() and np.isfinite(e).all() and (s >= 0).all()):
            raise InputError("std or error is not usable", expected="finite values, std >= 0", case=name)

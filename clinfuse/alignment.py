"""Alignment: find the small rigid motion by which the companion misses the anatomy image, and undo it before fusing.

Jitter in training makes a network expect misregistration; it cannot take it back, because what it sees in one crop
does not tell the motion of the whole head. The motion has at most six numbers and every voxel speaks for them: mutual
information over the head, from coarse to fine, by its exact gradient. What remains is carried on as registration
variance. Needs neither network nor torch, so that a service can align a case once for all its members.

Legend: N points; θ = (t_D, t_H, t_W, r_D, r_H, r_W), shifts in mm, turns in mm at 60 mm from the centre; x in mm
from the image's centre, axes (D, H, W). Moving by θ moves content as jitter does: out(x) = in(Rᵀ(x − t)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from clinfuse.case import HEAD_LEVEL, Case, FloatArray
from clinfuse.rotation import rotation, rotation_slopes

Floats = NDArray[np.float64]

ARM_MM = 60.0
BINS = 32
LEVELS_MM = ((4.0, 4_000), (2.0, 16_000), (1.0, 64_000))
"""Smoothing (standard deviation, mm) and number of points of each level, coarse to fine; few points answer badly."""
ROUNDS = 25
LEAST_MM, LARGEST_MM = 1.0, 5.0
LEAST_GAIN = 1.03
HALVES_APART_MM = 1.0
LEAST_PLANES, THICKEST_MM = 8, 3.0
SEED = 20


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What was found.

    Attributes:
        theta: (6,) the motion that brings the companion onto the anatomy image.
        motion_mm: its root mean square displacement over the head.
        doubt_mm: half of what the answers of two disjoint halves of the points differ by, over the head.
        information, information_before: mutual information (nat) of both images at the points, with and without.
    """

    theta: Floats
    motion_mm: float
    doubt_mm: float
    information: float
    information_before: float

    @property
    def used(self) -> bool:
        """Whether to act on it: 3 % more information, both halves agree, and 1 to 5 mm.

        More than that is told (`finding`). Less is within the tolerance of clinical registration
        (AAPM TG-132, Med Phys 44(7), 2017, asks for 1 to 2 mm): such a pair stays as the hospital registered it.
        """
        return self._believed and LEAST_MM <= self.motion_mm <= LARGEST_MM

    @property
    def _believed(self) -> bool:
        sure = self.doubt_mm <= min(HALVES_APART_MM, self.motion_mm / 2)
        return sure and self.information > LEAST_GAIN * self.information_before

    def finding(self, case_id: str) -> dict[str, str] | None:
        """What a person should know (as `clinfuse_prep.findings.Finding.as_dict`): too large a motion to act on."""
        if not self._believed or self.motion_mm <= LARGEST_MM:
            return None
        return {
            "case": case_id,
            "severity": "warning",
            "problem": "the companion image does not lie on the anatomy image",
            "expected": f"at most {LARGEST_MM:g} mm, which is undone here",
            "found": f"about {self.motion_mm:.0f} mm; fused as it lies",
            "todo": "register first (clinfuse prep --register, clinfuse fuse --register rigid), then look at both",
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the sidecar."""
        return {
            "used": self.used,
            "translation_mm": [round(float(v), 3) for v in self.theta[:3]],
            "rotation_deg": [round(float(v), 3) for v in np.degrees(self.theta[3:] / ARM_MM)],
            "motion_mm": round(self.motion_mm, 3),
            "doubt_mm": round(self.doubt_mm, 3),
            "information": round(self.information, 4),
            "information_before": round(self.information_before, 4),
        }


def aligned(case: Case) -> Case:
    """The case with its CT laid on the MRI, where that is worth it; what was found stands in attrs["alignment"], a
    motion too large for that among attrs["findings"], too.

    Masks that were made from the CT (provenance "auto:ct-…") move with it; all others stay. SPECT and PET are left
    as they are: their blur hides millimetres. A case that was aligned before comes back as it is.
    """
    if "alignment" in case.attrs or case.modalities[1] != "CT":
        return case
    found = find_alignment(case.anatomy, case.companion, case.spacing)
    attrs = {**case.attrs, "alignment": found.to_dict()}
    if (warning := found.finding(case.case_id)) is not None:
        attrs["findings"] = [*case.attrs.get("findings", []), warning]
    if not found.used:
        return replace(case, attrs=attrs)
    provenance = dict(case.attrs.get("provenance", {}))
    moved: dict[str, Any] = {
        roi: moved_by(found.theta, mask, case.spacing, order=0)
        for roi, mask in case.masks.items()
        if str(provenance.get(roi, "")).startswith("auto:ct")
    }
    companion = np.clip(moved_by(found.theta, case.companion, case.spacing), 0, 1)
    return replace(case, companion=companion, attrs=attrs, **moved)


def find_alignment(
    anatomy: FloatArray, companion: FloatArray, spacing_mm: tuple[float, float, float]
) -> Alignment:
    """Estimate the rigid motion that brings the companion onto the anatomy image.

    Fewer than eight slices, or slices further apart than 3 mm, move in their plane only (one turn, two shifts):
    between thick slices there is nothing to compare.

    Args:
        anatomy, companion: (D, H, W) in [0, 1].
        spacing_mm: mm per axis (D, H, W).

    Reference: Viola, Wells, IJCV 24(2), 1997; Maes et al., IEEE TMI 16(2), 1997 (registration by maximisation of
    mutual information); Thévenaz, Unser, IEEE TIP 9(12), 2000 (its gradient under Parzen windows). Points lie
    between the voxels, which removes the interpolation artefacts of joint histograms (Tsao, IEEE TMI 22(7), 2003).
    """
    solid = len(anatomy) >= LEAST_PLANES and spacing_mm[0] <= THICKEST_MM
    free = np.arange(6) if solid else np.array([1, 2, 3])
    theta = np.zeros(6)
    points = _points(anatomy, companion, LEVELS_MM[-1][1], spacing_mm)
    if len(points) < BINS**2:
        return Alignment(theta=theta, motion_mm=0, doubt_mm=0, information=0, information_before=0)
    for sigma_mm, count in LEVELS_MM:
        seen = _Seen(anatomy, companion, points[:count], spacing_mm, sigma_mm)
        theta = _climb(seen, _better(seen, theta, np.zeros(6)), free)
    halves = [_climb(seen.some(half), theta, free) for half in (slice(0, None, 2), slice(1, None, 2))]
    return Alignment(
        theta=theta,
        motion_mm=_rms(theta, np.zeros(6), points),
        doubt_mm=_rms(halves[0], halves[1], points) / 2,
        information=seen.information(theta)[0],
        information_before=seen.information(np.zeros(6))[0],
    )


def moved_by(
    theta: Floats, image: NDArray[Any], spacing_mm: tuple[float, float, float], order: Literal[0, 1, 3] = 3
) -> NDArray[Any]:
    """(D, H, W) with its content moved by θ, same type; the border's value comes in from outside.

    Cubic splines by default: a linear interpolation would blur thin bone as much as the misregistration it undoes.
    """
    step, centre = np.array(spacing_mm), (np.array(image.shape) - 1) / 2
    back = rotation(theta[3:] / ARM_MM).T
    matrix = back * step / step[:, None]
    offset = centre - matrix @ centre - back @ theta[:3] / step
    moved: NDArray[Any] = ndimage.affine_transform(
        image, matrix, offset, output=image.dtype, order=order, mode="nearest"
    )
    return moved


class _Seen:
    """Both images as one level sees them: greys of the anatomy image at the points, the companion with its slope."""

    def __init__(
        self,
        anatomy: FloatArray,
        companion: FloatArray,
        points: Floats,
        spacing_mm: tuple[float, float, float],
        sigma_mm: float,
    ) -> None:
        self.points, self.step = points, np.array(spacing_mm)
        self.centre = (np.array(anatomy.shape) - 1) / 2
        self.companion = _smoothed(companion, spacing_mm, sigma_mm)
        self.greys = self._at(_smoothed(anatomy, spacing_mm, sigma_mm), points)
        self.slopes = {
            axis: np.gradient(self.companion, self.step[axis], axis=axis)
            for axis in np.flatnonzero(self.centre)
        }

    def some(self, which: slice) -> _Seen:
        """The same with some of the points."""
        part = object.__new__(_Seen)
        part.__dict__ = {**self.__dict__, "points": self.points[which], "greys": self.greys[which]}
        return part

    def _at(self, image: FloatArray, points: Floats) -> Floats:
        places = points / self.step + self.centre
        return np.asarray(
            ndimage.map_coordinates(image, places.T, order=1, mode="nearest", output=np.float64)
        )

    def _slope(self, points: Floats) -> Floats:
        """∇ of the companion per mm, (N, 3); 0 along an axis of one voxel."""
        slope = np.zeros_like(points)
        for axis, image in self.slopes.items():
            slope[:, axis] = self._at(image, points)
        return slope

    def information(self, theta: Floats) -> tuple[float, Floats]:
        """Mutual information (nat) of the greys and the companion moved by θ, and its gradient (6,)."""
        turn, slopes = rotation(theta[3:] / ARM_MM), rotation_slopes(theta[3:] / ARM_MM)
        centred = self.points - theta[:3]
        source = centred @ turn
        (low_a, high_a), (low_b, high_b) = _bins(self.greys), _bins(self._at(self.companion, source))
        joint = np.zeros((BINS, BINS))
        for bin_a, weight_a in (low_a, high_a):
            for bin_b, weight_b in (low_b, high_b):
                flat = np.bincount(bin_a * BINS + bin_b, weight_a * weight_b, BINS * BINS)
                joint += flat.reshape(BINS, BINS)
        joint /= len(self.greys)
        ratio = joint / np.maximum(joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True), 1e-12)
        surprise = np.log(np.maximum(ratio, 1e-12))
        rise = sum(w * (surprise[b, high_b[0]] - surprise[b, low_b[0]]) for b, w in (low_a, high_a))
        pull = (rise * (BINS - 1) / len(self.greys))[:, None] * self._slope(source)
        towards = np.concatenate(
            [-(pull @ turn.T).sum(0), [np.sum(pull * (centred @ slope)) / ARM_MM for slope in slopes]]
        )
        return float(np.sum(joint * surprise)), towards


def _climb(seen: _Seen, start: Floats, free: NDArray[np.intp]) -> Floats:
    """θ of more mutual information, by L-BFGS over its free entries."""

    def loss(values: Floats) -> tuple[float, Floats]:
        theta = start.copy()
        theta[free] = values
        information, towards = seen.information(theta)
        return -information, -towards[free]

    bounds = [(-3 * LARGEST_MM, 3 * LARGEST_MM)] * len(free)
    done = minimize(
        loss,
        start[free],
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": ROUNDS, "ftol": 1e-5},
    )
    theta = start.copy()
    theta[free] = done.x
    return theta


def _better(seen: _Seen, found: Floats, still: Floats) -> Floats:
    """What a coarser level found, or no motion where that tells more: blurred images may have a false maximum."""
    return max(found, still, key=lambda theta: seen.information(theta)[0])


def _bins(values: Floats) -> list[tuple[NDArray[np.intp], Floats]]:
    """Greys in [0, 1] shared between the two bins beside them (triangular Parzen window): [(bin, weight)] × 2."""
    place = np.clip(values, 0, 1) * (BINS - 1)
    low = np.minimum(place.astype(np.intp), BINS - 2)
    return [(low, low + 1 - place), (low + 1, place - low)]


def _points(
    anatomy: FloatArray, companion: FloatArray, count: int, spacing_mm: tuple[float, float, float]
) -> Floats:
    """Up to `count` places in the head, (N, 3) mm from the centre, each drawn inside a voxel of its own."""
    head = np.flatnonzero((anatomy > HEAD_LEVEL) | (companion > HEAD_LEVEL))
    random = np.random.default_rng(SEED)
    chosen = random.choice(head, min(count, len(head)), replace=False)
    voxels = np.stack(np.unravel_index(chosen, anatomy.shape), axis=1).astype(float)
    shape = np.array(anatomy.shape)
    voxels += (random.random(voxels.shape) - 0.5) * (shape > 1)
    return np.asarray((voxels - (shape - 1) / 2) * np.array(spacing_mm))


def _smoothed(image: FloatArray, spacing_mm: tuple[float, float, float], sigma_mm: float) -> FloatArray:
    """Blurred by sigma_mm, but not across slices that lie further apart than that."""
    sigmas = [0.0 if step > sigma_mm else sigma_mm / step for step in spacing_mm]
    return np.asarray(ndimage.gaussian_filter(image, sigmas, mode="nearest", truncate=3), dtype=np.float32)


def _rms(theta: Floats, other: Floats, points: Floats) -> float:
    """Root mean square distance (mm) between where two motions take the points' content from."""
    source, second = ((points - t[:3]) @ rotation(t[3:] / ARM_MM) for t in (theta, other))
    return float(np.sqrt(np.mean(np.sum((source - second) ** 2, axis=1))))

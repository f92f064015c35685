"""What several draws of one case say together: mean image, three kinds of variance, calibrated uncertainty.

Light on purpose: needs no network and no torch, so that an aggregator which only combines starts fast and small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clinfuse import RESEARCH_USE, __version__
from clinfuse.case import Case, FloatArray
from clinfuse.errors import ConfigError
from clinfuse.method.variances import HALF_SATURATION, Variances
from clinfuse.presets import Preset

if TYPE_CHECKING:
    from clinfuse.method.calibration import Calibration
    from clinfuse.method.error_head import ErrorHead


@dataclass(frozen=True, kw_only=True)
class MemberSample:
    """One member's answer: fused (D, H, W) in [0, 1], aleatoric variance and first-order registration variance
    (D, H, W) in image units², and which draw it was, at which precision of the networks."""

    fused: FloatArray
    variance: FloatArray
    registration: FloatArray
    residual_energy: float
    member: int
    sample: int
    jitter: int
    steps: int
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class FusionResult:
    """The fused image and what is known of its error, all (D, H, W) float32.

    Attributes:
        fused: F in [0, 1].
        uncertainty: calibrated doubt in [0, 1]; without calibration std/(std + 0.05), said in info.
        interval: half width of the conformal interval in image units, its nominal coverage in info; None without
            calibration.
        std: raw size of the error that is expected, image units: the error head's, else the root of the total variance.
        aleatoric, epistemic, registration: variances in image units².
        info: the JSON sidecar's content.
    """

    fused: FloatArray
    uncertainty: FloatArray
    interval: FloatArray | None
    std: FloatArray
    aleatoric: FloatArray
    epistemic: FloatArray
    registration: FloatArray
    info: dict[str, Any]

    @property
    def variances(self) -> Variances:
        """The three kinds of variance."""
        return Variances(self.aleatoric, self.epistemic, self.registration)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What combining needs to know of a model: its identity, error head and calibration."""

    kind: str
    model_hash: str
    error_head: ErrorHead | None
    calibration: Calibration | None

    def knows(self, case: Case) -> bool:
        """Whether error head and calibration, if there are any, were fitted on companions of that kind."""
        return self.calibration is None or case.modalities[1] in self.calibration.companions


def combine_samples(
    samples: Sequence[MemberSample], case: Case, preset: Preset, model: ModelFacts, *, asked: int, seed: int
) -> FusionResult:
    """Mean image and the law of total variance over members, draws and jitters (Section 3.4).

    Variance of F over all draws = registration (over the jitters of a draw) + sampling (over a member's draws, each the
    mean of its jitters; counts as aleatoric) + epistemic (over the members' means).

    Args:
        samples: answers that arrived; at least one.
        case: the case they belong to.
        preset: the preset they were drawn with.
        model: identity and calibration.
        asked: members asked; fewer answering marks the result degraded and widens uncertainty and interval.
        seed: of the request, for the record.

    Raises:
        ConfigError: no sample.
    """
    if not samples:
        raise ConfigError("no member answered", expected="at least one sample", found="none")
    samples = sorted(samples, key=lambda s: (s.member, s.sample, s.jitter))
    fused = np.mean([s.fused for s in samples], axis=0, dtype=np.float32)
    aleatoric = np.mean([s.variance for s in samples], axis=0, dtype=np.float32)
    registration = _registration(samples)
    aleatoric = aleatoric + _sampling(samples)
    epistemic = _between(samples, lambda s: s.member)
    calibration, head = (model.calibration, model.error_head) if model.knows(case) else (None, None)
    variances = Variances(aleatoric, epistemic, registration)
    fused = np.clip(fused, 0, 1)
    std = np.sqrt(variances.total) if head is None else head.std(case, fused, variances)
    std = std * _widening(samples, asked)
    return FusionResult(
        fused=fused,
        uncertainty=_uncertainty(std, case, calibration),
        interval=None if calibration is None else calibration.interval(std, dict(case.masks)),
        std=std,
        aleatoric=aleatoric,
        epistemic=epistemic,
        registration=registration,
        info=_info(samples, case, preset, model, asked, seed),
    )


def _widening(samples: Sequence[MemberSample], asked: int) -> np.float32:
    """√(asked/answered): the error of an ensemble's mean grows so when members are missing; 1 when all answered."""
    answered = len({s.member for s in samples})
    return np.float32(np.sqrt(max(asked, answered) / answered))


def _registration(samples: Sequence[MemberSample]) -> FloatArray:
    """What misregistration may change: as the jittered draws differ, without such as it is to first order."""
    if _jittered(samples):
        return _within(samples, lambda s: (s.member, s.sample))
    return samples[0].registration


def _sampling(samples: Sequence[MemberSample]) -> FloatArray:
    """What the noise changes: mean over members of the variance of their draws, each the mean of its jitters."""
    members = sorted({s.member for s in samples})
    own = [[s for s in samples if s.member == member] for member in members]
    return np.mean([_between(draws, lambda s: s.sample) for draws in own], axis=0, dtype=np.float32)


def _jittered(samples: Sequence[MemberSample]) -> bool:
    return any(s.jitter for s in samples)


def _uncertainty(std: FloatArray, case: Case, calibration: Calibration | None) -> FloatArray:
    if calibration is not None:
        return np.asarray(calibration.uncertainty(std, dict(case.masks)), dtype=np.float32)
    return (std / (std + HALF_SATURATION)).astype(np.float32)


def _info(
    samples: Sequence[MemberSample], case: Case, preset: Preset, model: ModelFacts, asked: int, seed: int
) -> dict[str, Any]:
    members = sorted({s.member for s in samples})
    return {
        "case_id": case.case_id,
        "model_hash": model.model_hash,
        "model_kind": model.kind,
        "preset": preset.name,
        "weights": {k: v for k, v in preset.as_dict().items() if k not in ("name", "description", "steps")},
        "seed": seed,
        "steps": samples[0].steps,
        "precision": " and ".join(sorted({s.precision for s in samples})),
        "draws": len(samples),
        "members_asked": asked,
        "members_answered": len(members),
        "members": members,
        "degraded": len(members) < asked,
        "widened": float(_widening(samples, asked)),
        "residual_energy": float(np.mean([s.residual_energy for s in samples])),
        **({"alignment": case.attrs["alignment"]} if "alignment" in case.attrs else {}),
        "findings": list(case.attrs.get("findings", [])),
        "lesion_reference": "present" if case.has_lesion else "absent",
        **_meaning(model, case, jittered=_jittered(samples)),
        "modalities": list(case.modalities),
        "simulated_companion": bool(case.attrs.get("simulated", False)),
        "software": f"clinfuse {__version__}",
        "notice": RESEARCH_USE,
    }


def _meaning(model: ModelFacts, case: Case, *, jittered: bool) -> dict[str, Any]:
    """Units of the maps, and what a calibration promises of them.

    It was fitted on draws without jitters, and on some kinds of companion: of others it promises nothing.
    """
    fused, calibration = "relative intensity, 0 to 1", model.calibration
    if calibration is None or not model.knows(case):
        doubt = f"uncalibrated std/(std + {HALF_SATURATION:g})"
        if calibration is not None:
            known = ", ".join(calibration.companions)
            doubt += f": calibration was fitted on {known}, not on {case.modalities[1]}"
        return {"units": {"fused": fused, "uncertainty": doubt, "interval": None}}
    width = "half width of the conformal interval, relative intensity"
    if jittered:
        unknown = "calibration was fitted without jitters"
        doubt, width = f"uncalibrated, 0 to 1: {unknown}", f"{width}, of unknown coverage: {unknown}"
        return {"units": {"fused": fused, "uncertainty": doubt, "interval": width}}
    return {
        "units": {"fused": fused, "uncertainty": "calibrated, 0 to 1", "interval": width},
        "error_tolerance": calibration.tolerance,
        "interval_coverage": calibration.coverage,
    }


def _groups(samples: Sequence[MemberSample], key: Callable[[MemberSample], Any]) -> list[FloatArray]:
    names = sorted({key(s) for s in samples})
    return [np.stack([s.fused for s in samples if key(s) == name]) for name in names]


def _within(samples: Sequence[MemberSample], key: Callable[[MemberSample], Any]) -> FloatArray:
    """Mean over groups of the variance inside each group."""
    return np.mean([g.var(axis=0) for g in _groups(samples, key)], axis=0, dtype=np.float32)


def _between(samples: Sequence[MemberSample], key: Callable[[MemberSample], Any]) -> FloatArray:
    """Variance of the groups' means."""
    return np.var([g.mean(axis=0) for g in _groups(samples, key)], axis=0, dtype=np.float32)

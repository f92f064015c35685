"""The search space around a preset: which of its values a sweep may move, and how far."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse.presets import RANGES, Preset

# what a sweep may move beside a preset's values: amplitudes of the jitter ensemble, and the reverse-step formula
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "jitter_mm": (0.0, 10.0),
    "jitter_deg": (0.0, 10.0),
    "jitter_elastic_mm": (0.0, 5.0),
    "schedule": (0, 2),
}
SCHEDULES = ("ddim", "dpmsolver++", "ddpm")  # by the number that `schedule` searches
# values of a training recipe that `sweep-train` searches; jitter.* are amplitudes of the training jitter
TRAIN_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-6, 1e-1),
    "roi_weight": (0.0, 10.0),
    "seam_weight": (0.0, 1000.0),
    "residual_weight": (0.0, 10.0),
    "jitter_share": (0.0, 1.0),
    "jitter.translation_mm": (0.0, 20.0),
    "jitter.rotation_deg": (0.0, 20.0),
    "jitter.elastic_mm": (0.0, 5.0),
    "width": (0.25, 4.0),  # multiple of the recipe's channels
}
AXIS_RANGES: dict[str, tuple[float, float]] = {**RANGES, **SAMPLING_RANGES, **TRAIN_RANGES}
SCALES = ("linear", "log", "int")
WHOLE = ("steps", "schedule")

# name: (factor below, factor above) of the preset's own value, searched on a log scale
FACTORS: dict[str, tuple[float, float]] = {
    "alpha": (1 / 3, 3.0),
    "beta": (1 / 3, 3.0),
    "gamma": (1 / 3, 3.0),
    "eta": (0.1, 10.0),
    "eta_u": (0.1, 10.0),
}
# name: (low, high) searched linearly, whatever the preset says
SPANS: dict[str, tuple[float, float]] = {"kappa": (0.0, 12.0), "jitter_mm": (0.0, 2.0)}
# the same, searched only when asked for by name
MORE_FACTORS: dict[str, tuple[float, float]] = {
    "lambda_dice": (1 / 3, 3.0),
    "lambda_nsd": (1 / 3, 3.0),
    "lambda_hd": (1 / 3, 3.0),
    "tau_mm": (0.5, 2.0),
}
# values of 0 have no multiples: the linear span that is searched instead
ZERO_SPAN = 0.5


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One searched value.

    Attributes:
        name: a preset's value (alpha … steps), or one of SAMPLING_RANGES: jitter_mm (amplitude of the jitter
            ensemble's shift; turn and elastic warp follow it unless searched themselves), jitter_deg,
            jitter_elastic_mm, schedule (number in SCHEDULES); or one of TRAIN_RANGES.
        low, high: ends of the range, in the value's own unit, both included.
        scale: "linear", "log" (low > 0) or "int".

    Raises:
        ConfigError: unknown name (nearest offered), empty range, log scale from 0, or outside what is possible.
    """

    name: str
    low: float
    high: float
    scale: str = "linear"

    def __post_init__(self) -> None:
        if self.name not in AXIS_RANGES:
            raise unknown_value(self.name)
        floor, ceiling = AXIS_RANGES[self.name]
        usable = all(isinstance(v, int | float) and math.isfinite(v) for v in (self.low, self.high))
        if not usable or not floor <= self.low < self.high <= ceiling:
            raise ConfigError(
                f"the range of {self.name} is empty or outside what is possible",
                expected=f"{floor:g} <= low < high <= {ceiling:g}",
                found=f"low={self.low!r}, high={self.high!r}",
            )
        if self.scale not in SCALES or (self.scale == "log" and self.low <= 0):
            raise ConfigError(
                f"the scale of {self.name} cannot be used",
                expected=f"one of {', '.join(SCALES)}; log needs low > 0",
                found=f"scale={self.scale!r}, low={self.low:g}",
            )
        if (self.scale == "int") != (self.name in WHOLE):
            raise ConfigError(
                f"{self.name} has the wrong scale",
                expected=f"int for {' and '.join(WHOLE)} only",
                found=self.scale,
            )

    def clip(self, value: float) -> float:
        """The nearest value inside the range."""
        inside = min(max(float(value), self.low), self.high)
        return round(inside) if self.scale == "int" else inside

    def at(self, fraction: float) -> float:
        """The value at a fraction in [0, 1] of the way from low to high, on the axis's scale."""
        if self.scale == "log":
            return self.low * (self.high / self.low) ** fraction
        value = self.low + (self.high - self.low) * fraction
        return round(value) if self.scale == "int" else value

    def fraction(self, value: float) -> float:
        """The inverse of `at`."""
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def distribution(self) -> Any:
        """The axis as Optuna's distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.scale == "int":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.scale == "log")


@dataclass(frozen=True, kw_only=True)
class Space:
    """The axes searched around one preset; every other value stays the preset's own.

    Attributes:
        base: the preset.
        axes: at least one, names unique.
        own: present values of axes that are no part of the preset.
    """

    base: Preset
    axes: tuple[Axis, ...]
    own: Mapping[str, float] = field(default_factory=lambda: {"jitter_mm": 0.0})

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"the search space of {self.base.name!r} cannot be used",
                expected="at least one value to search, none twice",
                found=", ".join(names) or "nothing",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the searched values, in order."""
        return tuple(axis.name for axis in self.axes)

    def distributions(self) -> dict[str, Any]:
        """Optuna's distributions by name."""
        return {axis.name: axis.distribution() for axis in self.axes}

    def origin(self) -> dict[str, float]:
        """The present position, clipped into the ranges."""
        own = {**self.base.as_dict(), **self.own}
        return {axis.name: axis.clip(own[axis.name]) for axis in self.axes}

    def starts(self) -> list[dict[str, float]]:
        """The first trials: the preset itself, then neighbours that lean to brain, to bone, to more guidance."""
        own = self.origin()
        points = [own]
        for leaning in (("alpha", "beta"), ("beta", "alpha"), ("eta", "")):
            point = dict(own)
            for name, shift in zip(leaning, (0.25, -0.25), strict=True):
                if name in point:
                    axis = next(a for a in self.axes if a.name == name)
                    point[name] = axis.at(min(max(axis.fraction(own[name]) + shift, 0.0), 1.0))
            if point not in points:
                points.append(point)
        return points

    def preset(self, values: Mapping[str, float]) -> Preset:
        """The preset with these values in place of its own (jitter_mm is no part of a preset)."""
        changes: dict[str, Any] = {k: float(v) for k, v in values.items() if k in RANGES}
        if "steps" in changes:
            changes["steps"] = round(changes["steps"])
        return self.base.changed(**changes)

    def to_json(self) -> str:
        """JSON text that `space_from_json` reads back."""
        axes = [asdict(axis) for axis in self.axes]
        return json.dumps({"base": self.base.as_dict(), "axes": axes, "own": dict(self.own)}, indent=1)


def space_from_json(text: str) -> Space:
    """The space that `Space.to_json` wrote.

    Raises:
        ConfigError: not JSON, wrong form, or impossible values.
    """
    try:
        data = json.loads(text)
        axes = tuple(Axis(**axis) for axis in data["axes"])
        return Space(base=Preset(**data["base"]), axes=axes, own=data["own"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            "the search space cannot be read", found=f"{type(error).__name__}: {error}"
        ) from error


def space_around(
    preset: Preset,
    overrides: Mapping[str, Axis | None] | None = None,
    own: Mapping[str, float] | None = None,
) -> Space:
    """The space around a preset: multiples of its weights and strengths, spans of κ and jitter.

    Args:
        preset: the clinical priority whose neighbourhood is searched.
        overrides: by name, another range for a value, one more value to search, or None to keep it fixed.
        own: present values of what is no part of a preset, where they are not 0.

    Raises:
        ConfigError: an override that cannot be used.
    """
    axes: dict[str, Axis | None] = {name: multiples(preset, name) for name in FACTORS}
    axes |= {name: Axis(name=name, low=low, high=high) for name, (low, high) in SPANS.items()}
    axes |= _allowed(overrides or {}, {**RANGES, **SAMPLING_RANGES})
    kept = tuple(axis for axis in axes.values() if axis is not None)
    now = {axis.name: (own or {}).get(axis.name, 0.0) for axis in kept if axis.name in SAMPLING_RANGES}
    return Space(base=preset, axes=kept, own={"jitter_mm": 0.0, **now})


def unknown_value(name: str) -> ConfigError:
    """The error that offers the nearest names."""
    near = difflib.get_close_matches(name, AXIS_RANGES, n=3, cutoff=0.3) or sorted(AXIS_RANGES)
    return ConfigError("no such value to search", expected=f"for example {', '.join(near)}", found=name)


def space_of_training(
    preset: Preset, own: Mapping[str, float], overrides: Mapping[str, Axis | None] | None = None
) -> Space:
    """The space around a training recipe: multiples of its learning rate and λ_roi, spans of its jitter.

    Args:
        preset: under which the trained models are compared.
        own: the recipe's values of every name in TRAIN_RANGES.
        overrides: as in `space_around`.
    """
    axes: dict[str, Axis | None] = {}
    for name, (below, above) in {"learning_rate": (0.1, 5.0), "roi_weight": (0.1, 10.0)}.items():
        low, high = own[name] * below, min(own[name] * above, TRAIN_RANGES[name][1])
        axes[name] = Axis(name=name, low=low, high=high, scale="log") if low > 0 else None
    for name, span in {"jitter_share": (0.0, 1.0), "jitter.translation_mm": (0.0, 4.0)}.items():
        axes[name] = Axis(name=name, low=span[0], high=span[1])
    axes["width"] = Axis(name="width", low=0.5, high=2.0, scale="log")
    axes |= _allowed(overrides or {}, TRAIN_RANGES)
    return Space(base=preset, axes=tuple(axis for axis in axes.values() if axis is not None), own=dict(own))


def _allowed(
    overrides: Mapping[str, Axis | None], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Axis | None]:
    for name in overrides:
        if name not in ranges:
            near = difflib.get_close_matches(name, ranges, n=3, cutoff=0.3) or sorted(ranges)
            raise ConfigError(
                "no such value to search here", expected=f"for example {', '.join(near)}", found=name
            )
    return dict(overrides)


def multiples(preset: Preset, name: str) -> Axis:
    """The range of a weight or strength: multiples of the preset's own value, from 0 where that is 0."""
    value, (below, above) = float(getattr(preset, name)), (FACTORS | MORE_FACTORS)[name]
    if value == 0:
        return Axis(name=name, low=0.0, high=ZERO_SPAN)
    ceiling = AXIS_RANGES[name][1]
    return Axis(name=name, low=value * below, high=min(value * above, ceiling), scale="log")

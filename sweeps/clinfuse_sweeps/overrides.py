"""What `--space` says on the command line: another range, one more value, one fewer, or all there are."""

from __future__ import annotations

from collections.abc import Sequence

from clinfuse.errors import ConfigError
from clinfuse.presets import Preset
from clinfuse_sweeps.space import FACTORS, MORE_FACTORS, SPANS, WHOLE, Axis, multiples, unknown_value

# name: (low, high) searched only when asked for by name
MORE_SPANS: dict[str, tuple[float, float]] = {
    "jitter_deg": (0.0, 2.0),
    "jitter_elastic_mm": (0.0, 1.0),
    "schedule": (0, 1),
}
ALL = "all"


def usual_range(preset: Preset, name: str) -> Axis:
    """The range that `--space NAME` means without a range: the preset's own clinical neighbourhood.

    Raises:
        ConfigError: no such value (nearest offered).
    """
    if name in FACTORS or name in MORE_FACTORS:
        return multiples(preset, name)
    if name in SPANS or name in MORE_SPANS:
        low, high = (SPANS | MORE_SPANS)[name]
        return Axis(name=name, low=low, high=high, scale="int" if name in WHOLE else "linear")
    if name == "steps":
        return Axis(name=name, low=max(1, preset.steps // 10), high=max(2, preset.steps), scale="int")
    raise unknown_value(name)


def read_overrides(texts: Sequence[str], preset: Preset) -> dict[str, Axis | None]:
    """The command line's `--space` for one preset: ranges, names alone (their usual range), and `all`.

    Raises:
        ConfigError: an unknown name (nearest offered), another form, or an impossible range.
    """
    found: dict[str, Axis | None] = {}
    for text in texts:
        if text.strip() == ALL:
            names = (*FACTORS, *MORE_FACTORS, *SPANS, *MORE_SPANS, "steps")
            found = {**{name: usual_range(preset, name) for name in names}, **found}
        elif "=" not in text:
            found[text.strip()] = usual_range(preset, text.strip())
        else:
            name, axis = parse_axis(text)
            found[name] = axis
    return found


def parse_axis(text: str) -> tuple[str, Axis | None]:
    """An override from the command line: `eta=0.1..5:log`, `kappa=0..8`, `steps=4..50`, or `jitter_mm=fixed`.

    Raises:
        ConfigError: another form, or an impossible range.
    """
    name, _, rest = text.partition("=")
    name = name.strip()
    if rest.strip() == "fixed":
        return name, None
    span, _, scale = rest.partition(":")
    low, dots, high = span.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        dots = ""
    if not dots:
        raise ConfigError(
            "the range has the wrong form", expected="NAME=LOW..HIGH[:log] or NAME=fixed", found=text
        )
    default = "int" if name in WHOLE else "linear"
    return name, Axis(name=name, low=ends[0], high=ends[1], scale=scale.strip() or default)

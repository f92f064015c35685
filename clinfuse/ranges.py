"""Numbers that must lie within ranges: one check for presets, jitter and training options."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clinfuse.errors import ConfigError

Ranges = Mapping[str, tuple[float, float]]


def require_ranges(what: str, values: object, ranges: Ranges, *, whole: bool = False, todo: str = "") -> None:
    """Refuse attributes outside their ranges.

    Args:
        what: whose they are, begins the message.
        values: the object that holds them.
        ranges: name of the attribute → (lowest, highest), both allowed.
        whole: whether they must be integers.
        todo: what the reader can do about it.

    Raises:
        ConfigError: not a finite number, not whole where it must be, or out of its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(
                f"{what}: {name} is out of range",
                expected=f"{low} <= {name} <= {high}" + (", whole" if whole else ""),
                found=f"{name}={value!r}",
                todo=todo,
            )

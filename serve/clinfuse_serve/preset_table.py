"""Presets that change while the service runs: a table that replicas merge, last writer wins.

Every entry carries a (counter, origin) stamp; merging takes the larger stamp, so the order in which replicas hear
of changes does not matter, and a replica that starts later learns all of them from any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse.presets import Preset, find_preset

Stamp = tuple[int, str]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_PRESETS = 500


@dataclass(frozen=True)
class Entry:
    """One preset with the stamp of its last change."""

    preset: Preset
    stamp: Stamp


class PresetTable:
    """Presets by name, on one replica."""

    def __init__(self, presets: Mapping[str, Preset], origin: str) -> None:
        self.origin = origin
        self._entries = {name: Entry(preset, (0, "")) for name, preset in presets.items()}

    def rebase(self, presets: Mapping[str, Preset]) -> None:
        """Take the unchanged presets of another model version; changed ones stay."""
        kept = {name: entry for name, entry in self._entries.items() if entry.stamp[0] > 0}
        self._entries = {name: Entry(preset, (0, "")) for name, preset in presets.items()} | kept

    def presets(self) -> dict[str, Preset]:
        """All presets by name."""
        return {name: entry.preset for name, entry in self._entries.items()}

    def find(self, name: str) -> Preset:
        """The preset of that name; ConfigError with the names there are."""
        return find_preset(self.presets(), name)

    def change(self, preset: Preset) -> dict[str, Any]:
        """Set a preset here; returns the change for the other replicas' `merge`.

        Raises:
            ConfigError: a name that is not a plain lower-case word, or too many presets.
        """
        if not NAME.fullmatch(preset.name):
            raise ConfigError(
                "a preset cannot have this name",
                expected="1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit",
                found=repr(preset.name[:80]),
            )
        if preset.name not in self._entries and len(self._entries) >= MAX_PRESETS:
            raise ConfigError("too many presets", expected=f"at most {MAX_PRESETS}")
        counter = max((entry.stamp[0] for entry in self._entries.values()), default=0) + 1
        self._entries[preset.name] = Entry(preset, (counter, self.origin))
        return self.changes(only=preset.name)

    def changes(self, only: str | None = None) -> dict[str, Any]:
        """Everything changed since the start, as plain data."""
        return {
            name: {"preset": entry.preset.as_dict(), "stamp": list(entry.stamp)}
            for name, entry in self._entries.items()
            if entry.stamp[0] > 0 and only in (None, name)
        }

    def merge(self, changes: Mapping[str, Any]) -> None:
        """Take over what is newer than here."""
        for name, row in changes.items():
            counter, origin = row["stamp"]
            known = self._entries.get(name)
            if known is None or (int(counter), str(origin)) > known.stamp:
                self._entries[name] = Entry(Preset(**row["preset"]), (int(counter), str(origin)))

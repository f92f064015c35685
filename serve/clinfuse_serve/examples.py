"""Cases that a service offers for trying out: those of one prepared store, read when asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse_serve.schemas import ExampleRow

MAX_EXAMPLES = 12


class Examples:
    """Up to twelve cases of a prepared store, test cases first; an empty path offers none."""

    def __init__(self, store: str | None = None) -> None:
        self.store = store
        if store is not None and "://" not in store and not Path(store).is_dir():
            raise ConfigError(
                "there is no prepared store to take examples from",
                expected="a folder made by `clinfuse prep`",
                found="no such folder",
            )
        self._rows: list[ExampleRow] | None = None

    def rows(self) -> list[ExampleRow]:
        """What there is."""
        if self._rows is None:
            self._rows = [self._row(name) for name in self._names()]
        return self._rows

    def case(self, name: str) -> Case:
        """One case.

        Raises:
            InputError: no such example; the message lists those there are.
        """
        names = self._names() if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else []
        if name not in names:
            raise InputError(
                "no such example",
                expected=f"one of {', '.join(self._names())}" if self.store else "a service with examples",
                found=repr(name),
            )
        return self._open().read(name)

    def _names(self) -> list[str]:
        if self.store is None:
            return []
        held_out = list(self._open().case_ids("test"))
        return (held_out or list(self._open().case_ids()))[:MAX_EXAMPLES]

    def _open(self) -> Any:
        from clinfuse_prep.store import CaseStore

        return CaseStore(self.store or "")

    def _row(self, name: str) -> ExampleRow:
        case = self._open().read(name)
        simulated = bool(case.attrs.get("simulated", False))
        return ExampleRow(id=name, modalities=case.modalities, shape=case.shape, simulated=simulated)

"""What was used most recently, within a bound of bytes and of idle seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")
Clock = Callable[[], float]


@dataclass
class _Entry(Generic[Value]):
    value: Value
    nbytes: int
    used: float


class Recent(Generic[Value]):
    """Values by key; the least recently used go when the bytes do not suffice, the idle when they are old."""

    def __init__(self, max_bytes: int, max_idle_s: float, clock: Clock = time.monotonic) -> None:
        self.max_bytes, self.max_idle_s, self.clock = max_bytes, max_idle_s, clock
        self._entries: OrderedDict[Hashable, _Entry[Value]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """The value of that key, which is then the last to go; None if it is not kept."""
        self._forget_idle()
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.used = self.clock()
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: Hashable, value: Value, nbytes: int) -> None:
        """Keep a value; the least recently used go until all fit. One too large for all is not kept, and none goes."""
        self._entries.pop(key, None)
        if nbytes > self.max_bytes:
            return
        self._entries[key] = _Entry(value, nbytes, self.clock())
        self._forget_idle()
        while self.bytes > self.max_bytes:
            self._entries.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def _forget_idle(self) -> None:
        limit = self.clock() - self.max_idle_s
        for key in [k for k, entry in self._entries.items() if entry.used < limit]:
            del self._entries[key]

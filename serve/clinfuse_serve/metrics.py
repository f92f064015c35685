"""Numbers of one replica in Prometheus' text form; no label ever holds a case, a file or a person.

Each replica counts for itself; `merge` adds snapshots, so that whichever replica is asked can tell the whole.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
COUNTERS = {
    "clinfuse_requests_total": "Requests by route and status",
    "clinfuse_degraded_replies_total": "Replies made with fewer members than asked",
    "clinfuse_member_failures_total": "Members that did not answer, by member",
    "clinfuse_cancelled_total": "Requests whose client had gone before the answer",
    "clinfuse_voxels_total": "Voxels fused",
    "clinfuse_kept_case_hits_total": "Requests that used a case kept from before",
}
GAUGES = {
    "clinfuse_in_flight": "Fuse requests waiting or working",
    "clinfuse_kept_cases": "Prepared cases kept",
    "clinfuse_kept_bytes": "Memory of prepared cases kept",
    "clinfuse_members_up": "Members that are up",
    "clinfuse_members": "Members deployed",
    "clinfuse_unsure_share": "Share of head voxels above the uncertainty threshold, moving mean",
    "clinfuse_input_mean": "Mean intensity of the head in the images sent, moving mean, by image",
    "clinfuse_input_drift": "The same as standard deviations from the training cases' mean, moving mean",
}
HISTOGRAMS = {"clinfuse_seconds": "Seconds by phase"}
MEANS = frozenset(GAUGES) - {"clinfuse_in_flight", "clinfuse_kept_cases", "clinfuse_kept_bytes"}
Key = tuple[str, tuple[tuple[str, str], ...]]


class Sink(Protocol):
    """Hears of every number too."""

    def count(self, name: str, amount: float, labels: dict[str, str]) -> None:
        """Added to a counter."""

    def set(self, name: str, value: float, labels: dict[str, str]) -> None:
        """A gauge was set."""

    def observe(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Added to a histogram."""


class Metrics:
    """Counters, gauges and histograms of one replica; safe to use from several threads."""

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._values: dict[Key, float] = {}
        self._histograms: dict[Key, list[float]] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        key = _key(name, labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount
        if self._sink is not None:
            self._sink.count(name, amount, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[_key(name, labels)] = float(value)
        if self._sink is not None:
            self._sink.set(name, float(value), labels)

    def drift(self, name: str, value: float, rate: float = 0.05, **labels: str) -> None:
        """Move a gauge towards a value: exponential moving mean."""
        old = self._values.get(_key(name, labels), value)
        self.set(name, old + rate * (value - old), **labels)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        key = _key(name, labels)
        with self._lock:
            row = self._histograms.setdefault(key, [0.0] * (len(BUCKETS) + 2))
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-1] += seconds
        if self._sink is not None:
            self._sink.observe(name, seconds, labels)

    @contextmanager
    def phase(self, name: str, seconds: dict[str, float], start: float | None = None) -> Iterator[None]:
        """Observe how long what is done inside takes, and note it in `seconds`; counted from `start` if given."""
        begun = time.monotonic() if start is None else start
        yield
        seconds[name] = round(time.monotonic() - begun, 5)
        self.observe("clinfuse_seconds", seconds[name], phase=name)

    def quantile(self, name: str, share: float, default: float, **labels: str) -> float:
        """Upper bucket bound below which that share of the observations lies."""
        row = self._histograms.get(_key(name, labels))
        if row is None:
            return default
        counts, seen = row[:-1], 0.0
        for bound, count in zip((*BUCKETS, BUCKETS[-1]), counts, strict=True):
            seen += count
            if seen >= share * sum(counts):
                return bound
        return default

    def snapshot(self) -> dict[str, Any]:
        """All numbers as plain data."""
        with self._lock:
            return {
                "values": [(name, list(labels), value) for (name, labels), value in self._values.items()],
                "histograms": [(n, list(labels), list(row)) for (n, labels), row in self._histograms.items()],
            }


def merge(snapshots: Iterable[Mapping[str, Any]], now: Mapping[str, float] | None = None) -> dict[str, Any]:
    """One snapshot for several replicas: counts and loads added, shares and means averaged.

    Args:
        snapshots: one a replica.
        now: gauges without labels that are the same for all replicas, as they are at this moment: what the replicas
            remember of them is older.
    """
    values: dict[Key, list[float]] = {}
    histograms: dict[Key, list[float]] = {}
    for snapshot in snapshots:
        for name, labels, value in snapshot["values"]:
            values.setdefault((name, _pairs(labels)), []).append(value)
        for name, labels, row in snapshot["histograms"]:
            key = (name, _pairs(labels))
            old = histograms.get(key, [0.0] * len(row))
            histograms[key] = [a + b for a, b in zip(old, row, strict=True)]
    total = {k: sum(v) / (len(v) if k[0] in MEANS else 1) for k, v in values.items()}
    total |= {(name, ()): value for name, value in (now or {}).items()}
    return {
        "values": [(name, list(labels), value) for (name, labels), value in total.items()],
        "histograms": [(name, list(labels), row) for (name, labels), row in histograms.items()],
    }


def to_text(snapshot: Mapping[str, Any]) -> str:
    """Prometheus' text exposition format, version 0.0.4."""
    lines: list[str] = []
    for kind, table in (("counter", COUNTERS), ("gauge", GAUGES)):
        for name, help_text in table.items():
            rows = [(labels, v) for n, labels, v in snapshot["values"] if n == name]
            if rows:
                lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in sorted(rows)]
    for name, help_text in HISTOGRAMS.items():
        rows = [(labels, row) for n, labels, row in snapshot["histograms"] if n == name]
        if rows:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
            for labels, row in sorted(rows):
                lines += _histogram(name, labels, row)
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: list[Any], row: list[float]) -> list[str]:
    lines, seen = [], 0.0
    for bound, count in zip((*(f"{b:g}" for b in BUCKETS), "+Inf"), row[:-1], strict=True):
        seen += count
        lines.append(f"{name}_bucket{_labels([*labels, ('le', bound)])} {_number(seen)}")
    total = f"{name}_sum{_labels(labels)} {_number(row[-1])}"
    return [*lines, total, f"{name}_count{_labels(labels)} {_number(seen)}"]


def _number(value: float) -> str:
    """All digits, so that counters beyond a million still grow by one."""
    return f"{value:.0f}" if float(value).is_integer() else repr(float(value))


def _key(name: str, labels: Mapping[str, str]) -> Key:
    return name, tuple(sorted(labels.items()))


def _pairs(labels: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(a), str(b)) for a, b in labels)


def _labels(labels: Iterable[Any]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{{{inner}}}" if inner else ""

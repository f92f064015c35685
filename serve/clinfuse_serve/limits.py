"""What one service takes on: bytes, voxels, queue and time, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, fields

from clinfuse.errors import ConfigError

BOUNDS: dict[str, tuple[float, float]] = {
    "body_bytes": (1 << 10, 1 << 34),
    "voxels": (1, 1 << 32),
    "queue": (1, 10_000),
    "at_once": (1, 256),
    "deadline_s": (1, 86_400),
    "kept_bytes": (0, 1 << 36),
    "features_bytes": (0, 1 << 36),
    "kept_s": (0, 86_400),
    "samples": (1, 1024),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one service, per aggregator replica where said.

    Attributes:
        body_bytes: largest request body; more is answered 413.
        voxels: largest volume after decompression, read from the header before anything is allocated.
        queue: requests waiting or working per aggregator replica; one more is answered 429.
        at_once: requests of one aggregator replica that work at the same time.
        deadline_s: longest time for one request; members that have not answered by then are left out, and one that
            still waits or is prepared is answered 503.
        kept_bytes: memory for prepared cases that a page may fuse again without sending them, per aggregator replica;
            a head of 181 × 217 × 181 voxels takes 75 MiB, with a companion in colour 129 MiB.
        features_bytes: memory for what a member saw of those cases, per member replica; 0 keeps nothing.
        kept_s: how long an unused prepared case, or what was seen of it, is kept.
        samples: most sampler runs (members × samples × jitters) of one request.

    Raises:
        ConfigError: a value outside its bounds.
    """

    body_bytes: int = 256 << 20
    voxels: int = 64 << 20
    queue: int = 16
    at_once: int = 4
    deadline_s: float = 300.0
    kept_bytes: int = 256 << 20
    features_bytes: int = 32 << 20
    kept_s: float = 900.0
    samples: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = BOUNDS[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise ConfigError(
                    f"limit {field.name} is out of range",
                    expected=f"{low:g} <= {field.name} <= {high:g}",
                    found=f"{value!r}",
                )

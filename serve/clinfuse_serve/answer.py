"""What came of one request, and how far it is meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse.outputs import jsonable
from clinfuse_serve.kept import KeptCase
from clinfuse_serve.schemas import FuseReply, MapStatistics

if TYPE_CHECKING:
    from clinfuse.combine import FusionResult

Progress = Callable[[int, int], None]


def silent(_done: int, _all: int) -> None:
    """Tell nobody."""


class Count:
    """Counts draws and tells."""

    def __init__(self, total: int, tell: Progress) -> None:
        self.done, self.total, self.tell = 0, total, tell
        tell(0, total)

    def one_more(self) -> None:
        """A draw is done."""
        self.done += 1
        self.tell(self.done, self.total)


@dataclass
class Answer:
    """What came of one request.

    Attributes:
        kept: the case, with its token.
        part: what of it was fused: the case itself, or a slab of it.
        result: maps and sidecar facts.
        asked, used: members asked and members that answered.
        missing: member → reason.
        seconds: time per phase.
    """

    kept: KeptCase
    part: Case
    result: FusionResult
    asked: int
    used: int
    missing: dict[int, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def degraded(self) -> bool:
        """Fewer members answered than were asked."""
        return bool(self.missing)


def reply_of(answer: Answer) -> FuseReply:
    """The answer as facts."""
    maps = {"fused": answer.result.fused, "uncertainty": answer.result.uncertainty}
    if answer.result.interval is not None:
        maps["interval"] = answer.result.interval
    return FuseReply(
        case=answer.kept.token,
        shape=answer.part.shape,
        members_asked=answer.asked,
        members_used=answer.used,
        missing=sorted(answer.missing),
        degraded=answer.degraded,
        maps={name: _statistics(volume) for name, volume in maps.items()},
        info=jsonable(answer.result.info),
        seconds={phase: round(value, 4) for phase, value in answer.seconds.items()},
        research_use=RESEARCH_USE,
    )


def _statistics(volume: Any) -> MapStatistics:
    p05, p50, p95 = (float(v) for v in np.percentile(volume, (5, 50, 95)))
    return MapStatistics(mean=float(volume.mean()), p05=p05, p50=p50, p95=p95, maximum=float(volume.max()))

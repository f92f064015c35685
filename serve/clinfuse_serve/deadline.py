"""The time that one request has: it bounds waiting and preparing; members that have not drawn by then are left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from clinfuse_serve.problems import ProblemError, too_late

LEAST_S = 0.05


class Deadline:
    """When one request is to be answered, counted from now.

    Args:
        asked_s: seconds that the request gives, or None.
        most_s: seconds that the service gives at most.
    """

    def __init__(self, asked_s: float | None, most_s: float) -> None:
        self.start, self.seconds = time.monotonic(), min(asked_s or most_s, most_s)

    def left_s(self) -> float:
        """Seconds until then, at least 0.05 so that who is ready may answer."""
        return max(LEAST_S, self.start + self.seconds - time.monotonic())

    @asynccontextmanager
    async def until_asked(
        self, members: Sequence[int], phases: Mapping[str, float]
    ) -> AsyncIterator[Callable[[], None]]:
        """Ends what is done inside at the deadline, unless what it yields was called: now the members are asked.

        Args:
            members: that would be asked.
            phases: seconds of the phases that are over.

        Raises:
            ProblemError: 503, the deadline came before.
        """
        try:
            async with asyncio.timeout(self.left_s()) as waiting:
                yield lambda: waiting.reschedule(None)
        except TimeoutError as error:
            if not waiting.expired():
                raise
            found = "still being prepared" if "queue" in phases else "still waiting in the queue"
            raise ProblemError(too_late(self.seconds, found, members)) from error

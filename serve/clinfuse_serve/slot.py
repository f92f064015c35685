"""One of the places for requests that are worked on at once, held as long as anything of the request still runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Slot:
    """A place of a semaphore, from entering until leaving or, if that is later, the end of what `whole` began."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self.places = places
        self._running: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> Slot:
        await self.places.acquire()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._running is None or self._running.done():
            self.places.release()
        else:
            self._running.add_done_callback(self._ended)

    async def whole(self, work: Awaitable[T]) -> T:
        """Await work that does not end with its caller: a thread cannot be stopped, and takes its place until it is
        done. What it makes then is kept, though nobody waits for it."""
        running = asyncio.ensure_future(work)
        self._running = running
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self.places.release()
        if not running.cancelled():
            running.exception()  # nobody is left to hear of it

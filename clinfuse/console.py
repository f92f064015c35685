"""What people see while long work goes on: titles with time and bars, on stderr, so stdout stays data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
LINE_SECONDS = 30.0
CONSOLE = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for the person at the terminal."""
    CONSOLE.print(text)


def counted(number: int, noun: str) -> str:
    """ "1 case", "2 cases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a piece of work and, when it ends well, the seconds it took."""
    CONSOLE.print(f"[bold]{title}[/bold]")
    start = time.monotonic()
    yield
    CONSOLE.print(f"  done in {time.monotonic() - start:.1f} s")


def progress(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Iterate with a bar on a terminal; elsewhere (a job's log) with a line every half a minute."""
    if not CONSOLE.is_terminal:
        yield from _told_in_lines(items, total, label)
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, transient=True) as bar:
        yield from bar.track(items, total=total, description=label)


def _told_in_lines(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    start = told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= LINE_SECONDS:
            told = now
            left = f" of {total}, about {(now - start) / done * (total - done):.0f} s left" if total else ""
            CONSOLE.print(f"  {label}: {done}{left}")

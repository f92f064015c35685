"""The demo's journal, demo.json: what was asked, which steps are done, their commands, times and memory."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clinfuse import RESEARCH_USE, __version__
from clinfuse.console import say
from clinfuse.errors import ConfigError
from clinfuse.outputs import jsonable
from clinfuse_platform.memory import MemorySampler
from clinfuse_platform.storage import write_atomic
from clinfuse_platform.verb_table import give_memory_back

NAME = "demo.json"
TIMED, SERVED = "time teacher and student", "serve and fuse"  # titles that the report asks for


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished step: title, the command that does the same, wall and processor seconds, peak GB, result."""

    title: str
    command: str
    seconds: float
    cpu_seconds: float
    peak_gb: float
    result: Mapping[str, Any]


@dataclass
class Journal:
    """The steps done so far; saved at the start and after each, so that `--resume` continues after the last.

    Attributes:
        folder: the demo's output folder.
        settings: what was asked; a resumed demo must ask for the same.
        records: finished steps in order.
        memory: samples of the whole job (seconds since the start of this process's part, GB).
    """

    folder: Path
    settings: Mapping[str, Any]
    records: list[Record] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall time of all finished steps."""
        return sum(record.seconds for record in self.records)

    @property
    def peak_gb(self) -> float:
        """The largest memory of any step."""
        return max((record.peak_gb for record in self.records), default=0.0)

    def find(self, title: str) -> Record | None:
        """The finished step of that title."""
        return next((record for record in self.records if record.title == title), None)

    def result(self, title: str) -> Mapping[str, Any]:
        """What the finished step of that title returned; KeyError if it was not done."""
        done = self.find(title)
        if done is None:
            raise KeyError(title)
        return done.result

    @property
    def machine(self) -> dict[str, Any]:
        """What the steps ran on."""
        return {"cpus": os.cpu_count(), "system": platform.system(), "processor": platform.machine()}

    def do(
        self, title: str, command: str, work: Callable[[], Mapping[str, Any]], memory: MemorySampler
    ) -> Mapping[str, Any]:
        """Do a step, telling its command before and its time after; a step that is already done is skipped.

        Args:
            title: unique within the demo.
            command: what does the same from a shell; a line each.
            work: does it and returns a JSON-able result.
            memory: the running sampler.
        """
        done = self.find(title)
        if done is not None:
            say(f"[bold]{title}[/bold]: done before in {done.seconds:.1f} s")
            return done.result
        say(f"[bold]{title}[/bold]")
        for line in command.splitlines():
            say(f"  $ {line}")
        give_memory_back()
        memory.sample()
        start, since, used = time.monotonic(), memory.now, memory.cpu_seconds
        result = jsonable(work())
        memory.sample()
        seconds, used = time.monotonic() - start, memory.cpu_seconds - used
        peak = memory.peak(since)
        say(f"  {seconds:.1f} s ({used:.1f} s of processor time), at most {peak:.2f} GB")
        self.memory.extend((self.seconds + at - since, gb) for at, gb in memory.samples if at >= since)
        self.records.append(
            Record(
                title=title, command=command, seconds=seconds, cpu_seconds=used, peak_gb=peak, result=result
            )
        )
        self.save()
        return result

    def save(self) -> Path:
        """Write demo.json in one go."""
        data = {
            "notice": RESEARCH_USE,
            "software": f"clinfuse {__version__}",
            "machine": self.machine,
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
            "peak_gb": round(self.peak_gb, 4),
            "steps": [asdict(record) for record in self.records],
            "memory": [[round(at, 2), round(gb, 4)] for at, gb in self.memory],
        }
        path = self.folder / NAME
        write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
        return path


def open_journal(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> Journal:
    """A new journal in an empty or new folder, or with `resume` the one that is there, if any.

    Raises:
        ConfigError: the folder holds other files, a demo (without resume), or one with other settings.
    """
    known = load_journal(folder)
    if known is None or not resume:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                "the demo's folder is not empty",
                expected="a new or empty folder",
                found="a demo" if known else "other files",
                todo="give another --out" + (", or --resume to go on with it" if known else ""),
            )
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder=folder, settings=dict(settings))
        journal.save()  # from now on the folder is a demo's, however early it ends
        return journal
    if dict(known.settings) != dict(settings):
        raise ConfigError(
            "the demo in this folder was asked for with other settings",
            expected=json.dumps(known.settings),
            found=json.dumps(dict(settings)),
            todo="repeat its settings, or give another --out",
        )
    return known


def load_journal(folder: Path) -> Journal | None:
    """The journal in a folder, or None if there is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Journal(
        folder=folder,
        settings=data["settings"],
        records=[Record(**record) for record in data["steps"]],
        memory=[(at, gb) for at, gb in data["memory"]],
    )

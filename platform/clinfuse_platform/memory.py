"""Memory and processor time of a job with all the processes it started; shared pages are counted once."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

import psutil

GIGABYTE = 1e9


def tree(root: int | None = None) -> list[psutil.Process]:
    """A process (default this one) and all its descendants now."""
    process = psutil.Process(os.getpid() if root is None else root)
    return [process, *process.children(recursive=True)]


def tree_bytes(root: int | None = None) -> int:
    """Memory in use by a process and its descendants now, in bytes.

    The sum of proportional set sizes (PSS: a page shared by n processes counts 1/n for each), which is what the
    job takes from the machine. Where the system does not tell PSS, the unique set size is summed instead.
    """
    total = 0
    for member in tree(root):
        try:
            info = member.memory_full_info()
        except psutil.Error:  # ended meanwhile, or not ours
            continue
        total += getattr(info, "pss", info.uss)
    return total


class MemorySampler:
    """Samples `tree_bytes` and processor times every `interval` seconds while it is entered.

    Attributes:
        samples: (seconds since entering, gigabytes) in order.
    """

    def __init__(self, interval: float = 2.0) -> None:
        self.interval = interval
        self.samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._start = 0.0
        self._cpu: dict[tuple[int, float], float] = {}

    def __enter__(self) -> MemorySampler:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    @property
    def now(self) -> float:
        """Seconds since entering."""
        return time.monotonic() - self._start

    def sample(self) -> None:
        """Take one sample now."""
        self.samples.append((self.now, tree_bytes() / GIGABYTE))
        for member in tree():
            try:
                times = member.cpu_times()
                self._cpu[member.pid, member.create_time()] = times.user + times.system
            except psutil.Error:
                continue

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all processes seen so far, those that ended included (up to their last sample)."""
        return sum(self._cpu.values())

    def _run(self) -> None:
        self.sample()
        while not self._stop.wait(self.interval):
            self.sample()

    def peak(self, since: float = 0.0) -> float:
        """The largest sample in GB from `since` (seconds after entering) on; 0 if there is none yet."""
        return max((gigabytes for at, gigabytes in self.samples if at >= since), default=0.0)

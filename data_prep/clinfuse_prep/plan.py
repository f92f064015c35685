"""How long a cohort will take and how much room it will need, judged by one case."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clinfuse.console import counted, say
from clinfuse.errors import InputError
from clinfuse_prep.batch import Job, Outcome, run_job
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.session import ray_ready
from clinfuse_prep.sources.case import SourceCase

PEAK_RATIO = 6.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates for all cases: minutes with so many at a time, GB on disk, GB of memory at the peak."""

    cases: int
    at_a_time: int
    seconds_a_case: float
    minutes: float
    disk_gb: float
    memory_gb: float

    def sentence(self) -> str:
        """The plan in words."""
        return (
            f"plan: about {_time(60 * self.minutes)} for {counted(self.cases, 'case')} "
            f"({_time(self.seconds_a_case)} each, {self.at_a_time} at a time), "
            f"{_size(self.disk_gb)} on disk, {_size(self.memory_gb)} of memory"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds / 60:.0f} min"


def _size(gigabytes: float) -> str:
    return f"{1000 * gigabytes:.2g} MB" if gigabytes < 0.099 else f"{gigabytes:.1f} GB"


def estimate(outcome: Outcome, stored_bytes: int, cases: int, at_a_time: int, share: float = 1.0) -> Plan:
    """Carry one case over to all.

    Args:
        outcome: of the case that was measured; must be stored. stored_bytes: its size on disk.
        share: size of an average case's files divided by this one's.
    """
    row = outcome.row or {}
    peak = PEAK_RATIO * float(row["size_d"] * row["size_h"] * row["size_w"]) * 11
    return Plan(
        cases=cases,
        at_a_time=at_a_time,
        seconds_a_case=outcome.seconds * share,
        minutes=outcome.seconds * share * cases / at_a_time / 60,
        disk_gb=stored_bytes * share * cases / 1e9,
        memory_gb=peak * share * min(at_a_time, cases) / 1e9,
    )


def plan_source(cases: Sequence[SourceCase], config: PrepConfig, at_a_time: int) -> dict[str, object]:
    """Prepare the case of median size in a temporary folder, say the plan for all, and keep nothing.

    Returns:
        The plan as a dictionary, with `result` None.

    Raises:
        InputError: the case could not be prepared.
    """
    sized = sorted(((file_bytes(case), case) for case in cases), key=lambda pair: (pair[0], pair[1].name))
    middle_bytes, middle = sized[len(sized) // 2]
    average = sum(size for size, _ in sized) / len(sized)
    with tempfile.TemporaryDirectory(prefix="clinfuse-plan-") as folder:
        store = Path(folder) / "plan.zarr"
        job = Job(
            source=middle, case_id="plan", patient="plan", split="train", store=str(store), config=config
        )
        outcome = run_job(job)
        if outcome.row is None or outcome.row["state"] != "ok":
            finding = outcome.findings[-1]
            raise InputError(f"no plan: {finding.problem}", found=finding.found, todo=finding.todo)
        share = average / middle_bytes if middle_bytes else 1.0
        made = estimate(outcome, tree_bytes(store), len(cases), at_a_time, share)
    say(made.sentence())
    return {"result": None, "lost": 0, **asdict(made)}


def slots(workers: int | None, *, many: bool) -> int:
    """How many cases are prepared at a time.

    Args:
        workers: as asked for; None decides by `many`, 0 is one after another in this process.
    """
    if ray_ready():
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    wanted = workers if workers is not None else ((os.cpu_count() or 1) if many else 1)
    return max(1, wanted)


def file_bytes(case: SourceCase) -> int:
    """Size of a case's files on disk; files that are missing count nothing."""
    paths = [path for files in case.files.values() for path in files]
    return sum(tree_bytes(path) if path.is_dir() else path.stat().st_size for path in paths if path.exists())


def tree_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

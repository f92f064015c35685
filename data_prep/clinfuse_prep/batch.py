"""Preparing many cases: as Ray tasks when Ray runs, else here; bounded in flight, errors become findings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.prepare import prepare_case, source_notes
from clinfuse_prep.session import ray_ready
from clinfuse_prep.sources.case import SourceCase
from clinfuse_prep.store import CaseStore

IN_FLIGHT_PER_PLACE = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case to prepare: its files, names, choices, and the store it goes to."""

    source: SourceCase
    case_id: str
    patient: str
    split: str
    store: str
    config: PrepConfig


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: its manifest row, the findings, and the seconds it took."""

    case_id: str
    row: dict[str, Any] | None
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


def check_distinct(jobs: Sequence[Job]) -> None:
    """Refuse jobs of which one would write over another's case.

    Raises:
        ConfigError: several have one case id.
    """
    counts = Counter(job.case_id for job in jobs)
    shared = sum(count for count in counts.values() if count > 1)
    if shared:
        raise ConfigError(
            "several cases have one case id, so that one would replace the other",
            expected="a name of its own for each case of a patient",
            found=f"{shared} of {len(jobs)} cases that share theirs",
            todo="rename their folders, or give patient and case in a table; if the names differ, use another --key",
        )


def run_job(job: Job) -> Outcome:
    """Prepare and store one case; whatever goes wrong becomes a finding, so that the batch goes on."""
    start = time.monotonic()
    try:
        made = prepare_case(job.source, job.config, case_id=job.case_id, patient=job.patient, split=job.split)
        store = CaseStore(job.store)
        store.write(made.case, dtype=job.config.dtype)
        row = store.row(job.case_id)
    except Exception as error:
        findings = [*source_notes(job.source, job.case_id), Finding.from_error(error, job.case_id)]
        return Outcome(case_id=job.case_id, row=lost_row(job, findings), findings=findings)
    return Outcome(case_id=job.case_id, row=row, findings=made.findings, seconds=time.monotonic() - start)


def lost_row(job: Job, findings: Sequence[Finding]) -> dict[str, Any]:
    """The manifest row of a case that was left out."""
    import json

    return {
        "case_id": job.case_id,
        "patient": job.patient,
        "split": "",
        "state": "lost",
        "modalities": "+".join(job.source.modalities),
        "simulated": job.source.simulated,
        "findings": json.dumps([finding.as_dict() for finding in findings]),
        "worst": "error",
    }


def run_jobs(jobs: Sequence[Job], cpus: float = 1.0) -> Iterator[Outcome]:
    """Outcomes as they come (any order); on Ray if this process is connected to it, else one after another.

    Args:
        jobs: a case each.
        cpus: CPUs that a case takes on Ray; less than 1 where storage is slow and the CPU waits for it.
    """
    yield from _on_ray(jobs, cpus) if ray_ready() else map(run_job, jobs)


def _on_ray(jobs: Iterable[Job], cpus: float) -> Iterator[Outcome]:
    """One task per case, spread over the nodes, at most two per place in flight: memory stays bounded whatever the
    number of cases."""
    import ray

    limit = max(2, IN_FLIGHT_PER_PLACE * int(ray.cluster_resources().get("CPU", 1) / cpus))
    options: dict[str, Any] = {"num_cpus": cpus, "max_retries": 2, "scheduling_strategy": "SPREAD"}
    task: Callable[..., Any] = ray.remote(**options)(run_job).remote
    waiting: dict[Any, Job] = {}
    todo = iter(jobs)
    while True:
        while len(waiting) < limit and (job := next(todo, None)) is not None:
            waiting[task(job)] = job
        if not waiting:
            return
        done, _ = ray.wait(list(waiting), num_returns=1)
        for reference in done:
            yield _collect(reference, waiting.pop(reference))


def _collect(reference: Any, job: Job) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        finding = Finding.from_error(error, job.case_id)
        return Outcome(case_id=job.case_id, row=lost_row(job, [finding]), findings=[finding])
    return outcome


def store_path(out: str | Path) -> str:
    """The store's path or URL as given; local paths made absolute, since tasks may run in other folders."""
    text = str(out)
    return text if "://" in text else str(Path(text).resolve())

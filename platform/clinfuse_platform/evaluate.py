"""Methods × cases over a few Ray actors; results kept per case, so that a repeated command only does what is missing.

A part is one Parquet file per variant and case. A case that fails is a row that says so; an actor that dies costs
its case a row and is replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from clinfuse_prep.session import ray_ready

from clinfuse_platform.evaluate_slices import keep_picture, keep_slice
from clinfuse_platform.storage import write_table
from clinfuse_platform.variants import Variant, slab

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One variant on one case.

    Attributes:
        part: where its rows go.
        picture: where the fused image and uncertainty go (compressed npz, float16), or "".
        slice_picture: where one axial slice of the fused image goes (PNG), or "".
        head: model folder whose lesion head measures all methods alike, or "" for none.
        metrics: "roi", "all", "field", or "none" where only the pictures are wanted.
        slices: axial slab to work on, or None for the whole case.
    """

    variant: Variant
    case_id: str
    part: str
    picture: str = ""
    slice_picture: str = ""
    head: str = ""
    metrics: str = "roi"
    slices: int | None = None


class Evaluator:
    """Holds the dataset and the models it has met; one per actor."""

    def __init__(self, data: str, threads: int, device: str = "cpu") -> None:
        import torch
        from clinfuse_prep.store import CaseStore

        torch.set_num_threads(threads)
        self.store, self.device = CaseStore(data), device
        self.models: dict[str, FusionPipeline] = {}

    def evaluate(self, job: Job) -> Rows:
        """Rows of one job; an error becomes the row that names it. The rows are also kept in the job's part."""
        from clinfuse.evaluation import failed_rows

        started = time.perf_counter()
        try:
            rows = self._rows(job)
        except Exception as error:
            preset = str(job.variant.preset.get("name", ""))
            return failed_rows(job.case_id, job.variant.label, preset, error, time.perf_counter() - started)
        keep_part(job.part, rows)
        return rows

    def _rows(self, job: Job) -> Rows:
        from clinfuse.evaluation import check_fused, evaluate_case

        case = slab(self.store.read(job.case_id), job.slices)
        pipeline = self._model(job.variant.model)
        started = time.perf_counter()
        seen = job.variant.seen(case)
        fused, result = job.variant.fuse(seen, pipeline)
        seconds, fused = time.perf_counter() - started, check_fused(case, fused)
        head = self._model(job.head)
        if job.picture:
            keep_picture(Path(job.picture), fused, None if result is None else result.uncertainty)
        if job.slice_picture:
            keep_slice(job.slice_picture, fused, case)
        if job.metrics == "none":
            return []
        options: dict[str, Any] = {
            "metrics": job.metrics,
            "seconds": seconds,
            "given": seen.companion,
            "device": self.device,
        }
        return evaluate_case(
            case,
            fused,
            job.variant.label,
            preset=job.variant.named_preset(),
            lesion_head=None if head is None else head.lesion_head,
            result=result,
            **options,
        )

    def _model(self, folder: str) -> FusionPipeline | None:
        if not folder:
            return None
        if folder not in self.models:
            from clinfuse.pipeline import FusionPipeline

            self.models[folder] = FusionPipeline.from_pretrained(folder, device=self.device)
        return self.models[folder]


def run_jobs(jobs: Sequence[Job], data: str, *, actors: int = 0) -> pd.DataFrame:
    """All rows of all jobs; a part that exists is read, the others are computed, equal settings once.

    Args:
        jobs: see `Job`.
        data: the dataset's path.
        actors: how many work at once; 0: as many as there are GPUs, else cores, at most the jobs. Without an
            open Ray session the jobs are done in this process.
    """
    from clinfuse.console import progress

    parts: dict[str, Rows | None] = {job.part: read_part(job.part) for job in jobs}
    missing = {job.part: job for job in jobs if parts[job.part] is None}
    computed = (_on_actors if ray_ready() else _here)(list(missing.values()), data, actors)
    for part, rows in progress(computed, total=len(missing), label="cases"):
        parts[part] = rows
    table = [{**row, "method": job.variant.label} for job in jobs for row in parts[job.part] or ()]
    return ordered(pd.DataFrame(table), [job.variant.label for job in jobs])


def _here(jobs: Sequence[Job], data: str, actors: int) -> Iterable[tuple[str, Rows]]:
    """The same in this process, one after another."""
    evaluator = Evaluator(data, max(1, os.cpu_count() or 1)) if jobs else None
    for job in jobs:
        if evaluator is not None:
            yield job.part, evaluator.evaluate(job)


def _on_actors(jobs: Sequence[Job], data: str, actors: int) -> Iterable[tuple[str, Rows]]:
    """Part and rows of each job as they come; every actor has at most one job in flight."""
    if not jobs:
        return
    import ray

    count, options, threads, device = actor_size(len(jobs), actors)
    remote: Any = ray.remote(num_cpus=1)(Evaluator)
    remote = remote.options(**options)
    waiting, busy = list(jobs), dict[Any, tuple[Any, Job]]()
    idle = [remote.remote(data, threads, device) for _ in range(count)]
    while waiting or busy:
        while waiting and idle:
            actor, job = idle.pop(), waiting.pop(0)
            busy[actor.evaluate.remote(job)] = (actor, job)
        (done,), _ = ray.wait(list(busy), num_returns=1)
        actor, job = busy.pop(done)
        try:
            yield job.part, ray.get(done)
        except ray.exceptions.RayError as error:
            yield job.part, _lost(job, error)
            ray.kill(actor)
            actor = remote.remote(data, threads, device)
        idle.append(actor)
    for actor in idle:
        ray.kill(actor)


def actor_size(jobs: int, asked: int) -> tuple[int, dict[str, float], int, str]:
    """How many actors, what each reserves, its torch threads, and its device."""
    import ray

    have = ray.cluster_resources()
    gpus, nodes = int(have.get("GPU", 0)), sum(bool(node["Alive"]) for node in ray.nodes())
    if gpus:
        return min(jobs, asked or gpus), {"num_gpus": 1, "num_cpus": 1}, 1, "cuda"
    cores = os.cpu_count() or 1
    usable = min(int(have.get("CPU", 1)), cores) if nodes == 1 else int(have.get("CPU", 1))
    count = max(1, min(jobs, asked or usable))
    each = max(1, usable // count)
    return count, {"num_cpus": each}, each, "cpu"


def _lost(job: Job, error: Exception) -> Rows:
    from clinfuse.evaluation import failed_rows

    return failed_rows(job.case_id, job.variant.label, str(job.variant.preset.get("name", "")), error)


def keep_part(part: str, rows: Rows) -> None:
    """Write a part in one go."""
    write_table(part, pd.DataFrame(rows))


def read_part(part: str) -> Rows | None:
    """The rows of a part, or None where it is missing."""
    import io

    from upath import UPath

    file = UPath(part)
    if not file.exists():
        return None
    records = pd.read_parquet(io.BytesIO(file.read_bytes())).to_dict("records")
    return [{str(key): value for key, value in record.items()} for record in records]


def ordered(rows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """The rows by method as asked, then by case: the same table whatever the order of arrival."""
    if rows.empty:
        return rows
    place = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    sorted_rows = rows.assign(_place=rows["method"].map(place))
    sorted_rows = sorted_rows.sort_values(["_place", "preset", "case_id"], kind="stable")
    return sorted_rows.drop(columns="_place").reset_index(drop=True)


def failed_cases(rows: pd.DataFrame) -> int:
    """How many case × method pairs failed as a whole."""
    if rows.empty:
        return 0
    return int(((rows["metric"] == "fusion") & rows["status"].str.startswith("failed")).sum())

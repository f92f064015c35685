"""Downstream: the same small network trained on MRI, CT, both, and each method's F; measured on held-out patients."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from clinfuse_prep.session import ray_ready

from clinfuse_platform.evaluate import Job, Rows, keep_part, ordered, read_part, run_jobs
from clinfuse_platform.storage import write_table
from clinfuse_platform.variants import Variant, slab

if TYPE_CHECKING:
    from clinfuse.evaluation.downstream import ProbeCase
    from clinfuse.evaluation.places import Point
    from clinfuse.report import Section

BOTH = "both as channels"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One input to train the probe on.

    Attributes:
        label: the method's name in the table.
        images: case id → kept fused image (npz); empty for `BOTH`.
        train, test: case ids.
        part: where the rows go.
        steps, seed: of the probe's training.
        slices: axial slab of each case, or None.
        tolerance_mm: τ of the surface Dice, the same for every input.
    """

    label: str
    images: dict[str, str]
    train: list[str]
    test: list[str]
    part: str
    steps: int
    seed: int
    slices: int | None
    tolerance_mm: float


def measured(variants: Sequence[Variant], arguments: argparse.Namespace, out: Path) -> pd.DataFrame:
    """Fuse training and held-out cases with every method, train the probe on each, measure on the held-out cases.

    Every input is scored with one τ, that of the first method's preset.

    Returns:
        Rows as clinfuse.evaluation.rows.COLUMNS: dice, nsd, hd95 in the lesion; landmark errors in mm, of the lesion's
        centre and, where the cohort knows them, of anatomical landmarks and their mean; and what failed.
    """
    from clinfuse.console import progress, say
    from clinfuse_platform.evaluate_verb import jobs_of

    train, test = split_cases(arguments)
    tolerance = float(variants[0].preset["tau_mm"])
    asked = argparse.Namespace(**{**vars(arguments), "metrics": "none"})
    folder = out / "downstream"
    jobs = [
        replace(job, picture=job.slice_picture.removesuffix(".png") + ".npz", slice_picture="")
        for job in jobs_of(list(variants), [*train, *test], asked, folder)
    ]
    say(
        f"  downstream: {len(jobs)} fusions, then {len(variants) + 1} trainings of {arguments.downstream} steps"
    )
    not_fused = run_jobs(jobs, arguments.data, actors=arguments.actors)
    tasks = [
        task_of(
            variant.label,
            [job for job in jobs if job.variant.label == variant.label],
            train,
            test,
            arguments,
            folder,
            tolerance,
        )
        for variant in variants
    ]
    tasks.append(task_of(BOTH, [], train, test, arguments, folder, tolerance))
    rows: Rows = []
    for found in progress(run_tasks(tasks, arguments.data), total=len(tasks), label="probes"):
        rows += found
    return ordered(pd.concat([not_fused, pd.DataFrame(rows)]), [task.label for task in tasks])


def split_cases(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Training cases, and the held-out ones that are evaluated."""
    from clinfuse_prep.store import CaseStore

    from clinfuse_platform.evaluate_verb import cases_of

    return CaseStore(arguments.data).case_ids("train"), cases_of(arguments)


def task_of(
    label: str,
    jobs: Sequence[Job],
    train: list[str],
    test: list[str],
    arguments: argparse.Namespace,
    folder: Path,
    tolerance: float,
) -> Task:
    """The training task of one input; its part's name holds all that its rows depend on, the code included."""
    from clinfuse_platform.provenance import code_hash, data_hash

    images = {job.case_id: job.picture for job in jobs}
    facts = [
        label,
        sorted(images.values()),
        train,
        test,
        arguments.downstream,
        arguments.seed,
        arguments.slices,
    ]
    text = json.dumps([*facts, code_hash(), data_hash(arguments.data), tolerance])
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Task(
        label=label,
        images=images,
        train=train,
        test=test,
        part=str(folder.resolve() / "parts" / f"probe-{key}.parquet"),
        steps=arguments.downstream,
        seed=arguments.seed,
        slices=arguments.slices,
        tolerance_mm=tolerance,
    )


def run_tasks(tasks: Sequence[Task], data: str) -> Iterable[Rows]:
    """The rows of every task as they come, over Ray where a session is open; finished ones are read."""
    missing = []
    for task in tasks:
        rows = read_part(task.part)
        if rows is None:
            missing.append(task)
        else:
            yield rows
    if not ray_ready():
        yield from (probed(task, data, os.cpu_count() or 1) for task in missing)
        return
    import ray

    remote = ray.remote(num_cpus=1, max_retries=1)(probed)
    waiting = {remote.remote(task, data, 1): task for task in missing}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        task = waiting.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            yield failed(task, error)


def probed(task: Task, data: str, threads: int) -> Rows:
    """Train the probe of one task and measure it; an error becomes rows that name it."""
    import torch

    torch.set_num_threads(threads)
    try:
        rows = _rows(task, data)
    except Exception as error:
        return failed(task, error)
    keep_part(task.part, rows)
    return rows


def failed(task: Task, error: BaseException) -> Rows:
    """A failed row per held-out case."""
    from clinfuse.evaluation import failed_rows

    return [row for case_id in task.test for row in failed_rows(case_id, task.label, "", error)]


def _rows(task: Task, data: str) -> Rows:
    from clinfuse_prep.store import CaseStore

    from clinfuse.evaluation.downstream import ProbeConfig, train_probe
    from clinfuse.evaluation.downstream_scores import probe_rows
    from clinfuse.evaluation.rows import RowMaker

    store, started = CaseStore(data), time.perf_counter()
    config = ProbeConfig(steps=task.steps, seed=task.seed)
    probe = train_probe([probe_case(store, case_id, task) for case_id in task.train], config)
    seconds = time.perf_counter() - started
    rows: Rows = []
    for case_id in task.test:
        maker = RowMaker(case_id=case_id, method=task.label, preset="", seconds=seconds)
        rows += probe_rows(maker, probe, probe_case(store, case_id, task), task.tolerance_mm)
    return rows


def probe_case(store: Any, case_id: str, task: Task) -> ProbeCase:
    """A case as the probe gets it: one channel of F, or MRI and CT as two.

    Raises:
        InputError: the method has no image of this case.
    """
    from clinfuse.errors import InputError
    from clinfuse.evaluation.downstream import ProbeCase

    case = slab(store.read(case_id), task.slices)
    if task.label == BOTH:
        image = np.stack([case.anatomy, case.companion]).astype(np.float16)  # as every other input is kept
    else:
        file = Path(task.images[case_id])
        if not file.is_file():
            raise InputError(
                "no fused image to train on", expected="one per case", found="none", case=case_id
            )
        with np.load(file, allow_pickle=False) as arrays:
            image = arrays["fused"][None]
    return ProbeCase(
        image=image.astype(np.float32),
        lesion=case.lesion,
        spacing=case.spacing,
        landmarks=landmarks_in(case),
    )


def landmarks_in(case: Any) -> dict[str, Point]:
    """The anatomical landmarks of a case, (d, h, w) voxels, beyond a slab's borders, too; none without the truth."""
    truth = case.attrs.get("truth")
    if not truth or "subject" not in truth:
        return {}
    from clinfuse_prep.cohort.landmarks import landmarks_of

    back, found = np.linalg.inv(case.affine), {}
    for name, point in landmarks_of(truth).items():
        w, h, d = (back @ np.array([*point, 1.0]))[:3]
        found[name] = (float(d), float(h), float(w))
    return found


def write_downstream(rows: pd.DataFrame, out: Path) -> Path:
    """downstream.parquet: the metric rows of every probe."""
    file = out / "downstream.parquet"
    write_table(file, rows)
    return file


def downstream_section(rows: pd.DataFrame) -> list[Section]:
    """Table of means with intervals, and whom the first method beats."""
    from html import escape

    from clinfuse.evaluation import comparison_html, summarise, to_html
    from clinfuse.report import Section

    words = (
        "One small U-Net per input, each trained once, with the same initial weights (but of the layers that take a "
        "second channel), patients, slices and steps; measured on held-out patients, the surface Dice with the τ of "
        "the first method's preset. Landmarks: distance in mm; those outside of the slices read are empty; a missed "
        "lesion counts with the grid's diagonal."
    )
    shown = rows[~((rows["metric"] == "landmark") & ~rows["roi"].isin(("mean", "lesion centre")))]
    compared = comparison_html(rows, str(rows["method"].iloc[0]), metrics=("dice", "nsd", "hd95", "landmark"))
    return [Section("Downstream", f"<p>{escape(words)}</p>{to_html(summarise(shown))}{compared}")]

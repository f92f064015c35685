"""Teacher against student, timed side by side in one run on one slab: the guided many-step and the few-step model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clinfuse.case import Case
from clinfuse_platform.variants import slab

TEACHER_STEPS = 50
TEACHER_REPEATS, STUDENT_REPEATS = 2, 8


def time_teacher_and_student(teacher: Path, student: Path, store: Path, *, slices: int) -> dict[str, Any]:
    """Seconds per run of both models on the same axial slab of a test case, one thread-pool, one process.

    Args:
        teacher, student: model folders.
        store: dataset with a test case.
        slices: axial slices of the slab, see clinfuse_platform.variants.slab.

    Returns:
        case_id, slices, shape (H, W), steps, and of each model the seconds of every run after a first one that
        is not counted; `ratio` is the quotient of the medians.
    """
    from clinfuse.pipeline import FusionPipeline

    case = slab(_test_case(store), slices)
    guided, fast = FusionPipeline.from_pretrained(teacher), FusionPipeline.from_pretrained(student)
    fast_steps = fast.student_steps
    runs = {
        "teacher": lambda: guided(case, "balanced", steps=TEACHER_STEPS, guided=True, seed=1),
        "student": lambda: fast(case, "balanced", steps=fast_steps, guided=False, seed=1),
    }
    guided(case, "balanced", steps=1, guided=True, seed=1)  # warm-up, not counted
    seconds = {
        "teacher": _timed(runs["teacher"], TEACHER_REPEATS),
        "student": _timed(runs["student"], STUDENT_REPEATS, warm_up=True),
    }
    medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    return {
        "case_id": case.case_id,
        "slices": case.shape[0],
        "shape": list(case.shape[1:]),
        "teacher_steps": TEACHER_STEPS,
        "student_steps": fast_steps,
        "seconds": seconds,
        "ratio": medians["teacher"] / medians["student"],
    }


def _timed(work: Callable[[], object], repeats: int, *, warm_up: bool = False) -> list[float]:
    if warm_up:
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def _test_case(store: Path) -> Case:
    from clinfuse_prep.store import CaseStore

    cases = CaseStore(store)
    return cases.read(cases.case_ids(split="test")[0])

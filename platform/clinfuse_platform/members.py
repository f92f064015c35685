"""The ensemble: a training job for each further member, together where there is room, then one model folder of all.

Every member has its own model folder in the run, `members/<n>`. Where there is room for several, each is a job of its
own (`member_<n>`: own state, checkpoints, curves), and one that fails costs the others nothing. Where there is not, one
job (`ensemble`) trains them one after the other with the same workers, which need not start again for each. Either way
the same command goes on after a kill, and asking for more members later trains only the new ones.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clinfuse_prep.session import can_grow, gpus_present

from clinfuse.console import say
from clinfuse.errors import describe
from clinfuse_platform.launch import (
    TrainingError,
    Workers,
    check_resources,
    launch,
    settings_key,
    watched,
)
from clinfuse_platform.plans import member_kind, member_name
from clinfuse_platform.runs import Run, find_model, put_model

if TYPE_CHECKING:
    from upath import UPath

JOB = KIND = "ensemble"


def train_members(
    run: Run, settings: Mapping[str, Any], count: int, workers: Workers, *, mlflow: bool = False
) -> UPath:
    """Train what is missing of an ensemble and put it together; the path of its model folder.

    Args:
        run: the run whose model is the first member.
        settings: of every member: "config", "data", "data_hash", "teacher" and "base" (model folders), and
            "teacher_key" and "base_key" (hashes of their weights).
        count: members in all, 2 or more.
        workers: of each job.
        mlflow: tell MLflow of each job.

    Raises:
        TrainingError: members failed; the message names them, and the others are kept.
    """
    key = settings_key({**settings, "members": count})
    if run.is_finished(JOB, key, KIND):
        say(f"  {JOB} of run {run.name} is finished; nothing is trained again")
        return run.path / KIND
    workers = shared_out(workers, count - 1)
    check_resources(workers)
    started = time.monotonic()
    run.set_state(JOB, "running", error=None)
    try:
        _train_missing(run, settings, range(1, count), workers, mlflow)
        _assemble(run, settings, count)
    except BaseException as error:
        run.set_state(JOB, "failed", error=describe(error))
        raise
    run.set_state(JOB, "finished", key=key, seconds=round(time.monotonic() - started, 1))
    return run.path / KIND


def room(workers: Workers) -> int | None:
    """How many groups of workers train at once: None leaves that to a cluster, which starts what has room and may grow.

    A session started here has more logical CPUs than this machine has cores; only cores are room.
    """
    if can_grow():
        return None
    have = {"CPU": os.cpu_count() or 1, "GPU": gpus_present()}
    needs = {"CPU": workers.most * workers.cpus_each, "GPU": workers.most * workers.gpus}
    return max(1, min(int(have[name] // need) for name, need in needs.items() if need))


def shared_out(workers: Workers, groups: int) -> Workers:
    """The same workers with this machine's cores shared among as many groups as its GPUs have room for."""
    if workers.cpus or not workers.gpus or can_grow():
        return workers
    groups = max(1, min(groups, int(gpus_present() // (workers.most * workers.gpus))))
    return replace(workers, cpus=max(1, workers.cpus_each // groups))


def together(
    do: Callable[[int], object], numbers: Sequence[int], at_once: int | None
) -> dict[int, Exception]:
    """Call `do` with every number, that many at once (None: all); what failed, by number. A failure stops no other.

    The interrupt key ends the waiting at once: what runs ends with the session, what waits never begins.
    """
    todo, failed = deque(numbers), dict[int, Exception]()

    def work() -> None:
        while todo:
            try:
                number = todo.popleft()
            except IndexError:  # another was quicker
                return
            try:
                do(number)
            except Exception as error:
                failed[number] = error

    crew = [threading.Thread(target=work, daemon=True) for _ in range(at_once or len(numbers))]
    try:
        for worker in crew:
            worker.start()
        for worker in crew:
            worker.join()
    except BaseException:
        todo.clear()
        raise
    return failed


def _of(settings: Mapping[str, Any], *numbers: int) -> dict[str, Any]:
    return {**settings, "plan": JOB, "members": list(numbers)}


def _train_missing(
    run: Run, settings: Mapping[str, Any], numbers: range, workers: Workers, mlflow: bool
) -> None:
    keys = {number: settings_key(_of(settings, number)) for number in numbers}
    missing = [n for n in numbers if not run.is_finished(member_name(n), keys[n], member_kind(n))]
    at_once = room(workers)
    if not missing:
        return
    if at_once == 1:
        launch(JOB, member_kind(missing[-1]), run, _of(settings, *missing), workers, mlflow=mlflow)
        for number in missing:
            run.set_state(member_name(number), "finished", key=keys[number])
        return

    def train(number: int) -> None:
        own = _of(settings, number)
        launch(member_name(number), member_kind(number), run, own, workers, mlflow=mlflow, shown=False)

    try:
        with watched(run, *map(member_name, missing)):
            failed = together(train, missing, at_once)
    except (
        KeyboardInterrupt
    ):  # said here: Ray may end this process when its session ends under the waiting jobs
        say("  interrupted; the same command goes on from the members' checkpoints")
        raise
    if failed:
        what = "; ".join(f"{member_name(n)}: {describe(failed[n])}" for n in sorted(failed))
        kept = ", ".join(member_name(n) for n in numbers if n not in failed) or "none"
        raise TrainingError(
            f"{what}; kept: {kept}; the same command trains only what is missing"
        ) from failed[min(failed)]


def _assemble(run: Run, settings: Mapping[str, Any], count: int) -> None:
    """The base model's member and the further ones as one model folder, which appears in one step."""
    from clinfuse.pipeline import FusionPipeline

    # the base model's error head and calibration are not the ensemble's
    whole = FusionPipeline.from_pretrained(find_model(settings["base"]), calibrated=False)
    for number in range(1, count):
        further = FusionPipeline.from_pretrained(find_model(run.path / member_kind(number)))
        whole.members += further.members
        whole.metadata = further.metadata
    put_model(whole.save_pretrained, run.path / KIND)

"""`clinfuse prep`: from a source to a dataset, with plan, progress and a last word."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from clinfuse import RESEARCH_USE
from clinfuse.console import counted, progress, say
from clinfuse.errors import ConfigError
from clinfuse.folders import check_writable
from clinfuse_prep.batch import Job, Outcome, check_distinct, run_jobs, store_path
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.masks.deepbet import deepbet_installed
from clinfuse_prep.plan import estimate, plan_source, slots, tree_bytes
from clinfuse_prep.pseudonym import open_key, read_links, write_links
from clinfuse_prep.resume import (
    Held,
    check_corrected,
    check_key,
    check_renamed,
    check_splits,
    held_cases,
    held_splits,
    remove_failed,
    unfinished,
)
from clinfuse_prep.session import session
from clinfuse_prep.sources import SourceCase, find_cases
from clinfuse_prep.sources.mask_folder import with_masks
from clinfuse_prep.split import SPLITS, Fractions, asked_split, split_patients
from clinfuse_prep.store import CaseStore

IN_PROCESS_CASES = 24
LEAST_PLANNED = 10
MOST_SHOWN = 12


def check_asked(arguments: argparse.Namespace) -> None:
    """Refuse words that cannot go together, before anything is read.

    Raises:
        ConfigError: the source is a URL, a dataset at a URL has no --key, or both --resume and --overwrite are given.
    """
    if "://" in arguments.source:
        raise ConfigError(
            "the source is read from a folder",
            expected="a path",
            found="a URL",
            todo="copy the images into a folder, or mount the bucket; on a cluster all nodes must see it",
        )
    if "://" in arguments.out and not (arguments.key or arguments.plan):
        raise ConfigError(
            "a dataset at a URL needs --key", expected="a local folder for key and links", found="none"
        )
    if arguments.overwrite and arguments.resume:
        raise ConfigError("--resume and --overwrite", expected="one of them", found="both")


def prep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare a source into a dataset.

    Returns:
        The plan with --plan (see `plan_source`), else: result (the dataset), layout,
        cases (stored), kept (from before), changed (ids of cases whose files are others than before), lost,
        splits, findings (counts by severity), problems, seconds, megabytes_per_s.
    """
    config, cpus = _config(arguments), _cpus(arguments.cpus_per_case)
    source, out = Path(arguments.source), store_path(arguments.out)
    if "://" not in out:
        check_writable(out)
    layout, cases, findings = find_cases(source, arguments.layout)
    if arguments.masks != "auto":
        cases, unmatched = with_masks(cases, Path(arguments.masks))
        findings += unmatched
    patients = len({case.patient for case in cases})
    say(f"layout {layout}: {counted(len(cases), 'case')} of {counted(patients, 'patient')}")
    if arguments.plan:
        return plan_source(cases, config, slots(arguments.workers, many=len(cases) > IN_PROCESS_CASES))
    store = CaseStore(out)
    held = held_cases(store, resume=arguments.resume, overwrite=arguments.overwrite)
    folder = Path(arguments.key or f"{out}.key")
    jobs = _jobs(cases, layout, config, arguments, out, folder, held)
    check_distinct(jobs)
    check_renamed(read_links(folder), held, jobs)
    todo, changed = unfinished(jobs, held, config)
    check_corrected(held, [job.case_id for job in todo])
    started = time.monotonic()
    with _workers(len(todo), arguments):
        _begin(store, jobs, todo, folder, arguments)
        outcomes = _run(todo, arguments, cpus)
    findings += [finding for outcome in outcomes for finding in outcome.findings]
    findings += remove_failed(store, held, outcomes)
    rows = [outcome.row for outcome in outcomes if outcome.row is not None]
    known = {row["case_id"] for row in rows}
    rows += [store.row(name) for name in store.case_ids() if name not in known]
    store.commit_manifest(rows)
    store.drop_empty_aside()
    if others := len(held.keys() - {job.case_id for job in jobs}):
        say(f"kept as before: {counted(others, 'case')} of the dataset that this source does not have")
    return {
        **_last_word(arguments.out, layout, rows, jobs, todo, findings, time.monotonic() - started),
        "changed": changed,
    }


def _config(arguments: argparse.Namespace) -> PrepConfig:
    return PrepConfig(
        spacing_mm=_numbers(arguments.spacing, 3, "--spacing") if arguments.spacing else None,
        ct_window=(arguments.ct_window[0], arguments.ct_window[1]),
        slice_spacing_mm=_numbers(arguments.slice_spacing, 3, "--slice-spacing"),
        register=arguments.register,
        brain=arguments.brain,
        compare=not arguments.no_compare and deepbet_installed(),
        n4=arguments.n4,
        deface=arguments.deface,
        dtype=arguments.dtype,
    )


def _cpus(asked: float) -> float:
    if not (0 < asked < 1 or (asked >= 1 and asked % 1 == 0)):
        raise ConfigError("--cpus-per-case is not usable", expected="below 1, or whole", found=f"{asked:g}")
    return asked


def _numbers(text: str, count: int, option: str) -> Any:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        raise ConfigError(f"{option} is not usable", expected=f"{count} numbers with commas", found=text)
    return values


def _jobs(
    cases: Sequence[SourceCase],
    layout: str,
    config: PrepConfig,
    arguments: argparse.Namespace,
    out: str,
    folder: Path,
    held: Held,
) -> list[Job]:
    """A job per case. The cohort's order is its design, so its split is not shuffled."""
    patients = list(dict.fromkeys(case.patient for case in cases))
    asked = asked_split(arguments.split, patients)
    check_key(folder, held)
    before = held_splits(held)
    names = open_key(folder)
    known = {p: before[names.patient(p)] for p in patients if names.patient(p) in before}
    splits = _splits(patients, asked, known, seed=arguments.seed, shuffle=layout != "cohort")
    return [
        Job(
            source=case,
            case_id=names.case(case.patient, case.name),
            patient=names.patient(case.patient),
            split=splits[case.patient],
            store=out,
            config=config,
        )
        for case in cases
    ]


def _splits(
    patients: Sequence[str],
    asked: Fractions | dict[str, str],
    before: Mapping[str, str],
    *,
    seed: int,
    shuffle: bool,
) -> dict[str, str]:
    """Patient's name → split: as asked for by a file, else from before or drawn."""
    if isinstance(asked, dict):
        check_splits(asked, before)
        return asked
    return split_patients(patients, fractions=asked, seed=seed, shuffle=shuffle, known=before)


def _begin(
    store: CaseStore, jobs: Sequence[Job], todo: Sequence[Job], folder: Path, arguments: argparse.Namespace
) -> None:
    """The first that is written, when nothing can be refused any more."""
    write_links(folder, ((j.case_id, j.patient, j.source.patient, j.source.name) for j in jobs))
    if arguments.overwrite:
        store.clear()
    if arguments.resume:
        store.clear_aside()
    store.create()
    if todo:
        store.withdraw_manifest()


def _run(jobs: Sequence[Job], arguments: argparse.Namespace, cpus: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for outcome in progress(run_jobs(jobs, cpus), total=len(jobs), label="cases"):
        outcomes.append(outcome)
        if len(outcomes) == 1 and len(jobs) >= LEAST_PLANNED:
            _plan(CaseStore(jobs[0].store), jobs, outcome, arguments.workers)
    return outcomes


def _plan(store: CaseStore, jobs: Sequence[Job], first: Outcome, workers: int | None) -> None:
    """Say how long and how large the whole will be, judged by the first case."""
    if first.row is None or first.row["state"] != "ok":
        return
    size = tree_bytes(store.local / "cases" / first.case_id) if store.local else 0
    say(estimate(first, size, len(jobs), slots(workers, many=False)).sentence())


def _workers(jobs: int, arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """A Ray session where one is asked for or worth its start; one that runs already is used."""
    address = getattr(arguments, "address", None) or os.environ.get("RAY_ADDRESS")
    wanted = arguments.workers if arguments.workers is not None else (jobs > IN_PROCESS_CASES)
    if not jobs or not (address or wanted):
        return nullcontext()
    return session(address, cpus=slots(arguments.workers, many=True))


def _last_word(
    out: str,
    layout: str,
    rows: Sequence[dict[str, Any]],
    jobs: Sequence[Job],
    todo: Sequence[Job],
    findings: Sequence[Finding],
    seconds: float,
) -> dict[str, Any]:
    stored = [row for row in rows if row["state"] == "ok"]
    lost = len([row for row in rows if row["state"] == "lost"])
    shown = [finding for finding in findings if finding.severity != "info"]
    for finding in shown[:MOST_SHOWN]:
        finding.tell()
    if len(shown) > MOST_SHOWN:
        say(f"  and {len(shown) - MOST_SHOWN} more: clinfuse inspect {out}")
    if len(findings) > len(shown):
        say(f"  {counted(len(findings) - len(shown), 'note')} for information: clinfuse inspect {out}")
    voxels = sum(float(np.prod([row[f"size_{axis}"] for axis in "dhw"])) for row in stored)
    splits = Counter(row["split"] for row in stored)
    say(
        f"{counted(len(stored), 'case')} in {out} ({', '.join(f'{splits[s]} {s}' for s in SPLITS)}), "
        f"{lost} lost, {len(jobs) - len(todo)} kept from before, {seconds:.1f} s"
    )
    say(RESEARCH_USE)
    return {
        "result": str(out),
        "layout": layout,
        "cases": len(stored),
        "kept": len(jobs) - len(todo),
        "lost": lost,
        "splits": dict(splits),
        "findings": dict(Counter(finding.severity for finding in findings)),
        "problems": [finding.as_dict() for finding in shown],
        "seconds": seconds,
        "megabytes_per_s": voxels * 8 / 1e6 / seconds if seconds > 0 and todo else None,
    }

"""Sweeps, measured: `python tests/benchmarks/sweeps.py [--quick] [--work DIR] [--model M --data D.zarr]`.

On a problem with a known front: the overhead of a trial, wall time against compute, the driver's time over a thousand
trials, the share of ZDT1's true hypervolume beside random search, what early stopping saves, and how long it takes to
go on after 1,000 finished trials. On the embedded cohort: search against random trials over five seeds, the presets
against their own fronts, and what sharing a batch would bring. Writes tests/benchmarks/results/sweeps.md.

What is done is kept in the work folder, so that the same command goes on where it was stopped; remove the folder to
measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import sweeps_cohort as cohort
from clinfuse_prep.session import session
from clinfuse_sweeps.fronts import hypervolume
from clinfuse_sweeps.goals import find_goals, losses
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import SweepResult, collect, run_sweep
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.studies import PresetStudy, open_storage
from clinfuse_sweeps.trials import RECORD
from numpy.typing import NDArray
from sweeps_cohort import Row

from clinfuse.presets import load_presets

ANALYTIC = str(Path(__file__).parents[1] / "sweeps")
sys.path.append(ANALYTIC)
os.environ["PYTHONPATH"] = ANALYTIC  # for Ray's workers
from analytic import TRUE_HYPERVOLUME, Zdt1  # noqa: E402

RESULT = Path(__file__).parent / "results" / "sweeps.md"
PRESETS = ("balanced", "bone_tumor")
SPACES = {name: space_around(load_presets()[name]) for name in PRESETS}
WORK = Path("runs") / "benchmark-sweeps"
TRUTH_TRIALS = 120
GOALS = find_goals(["brain_ssim", "bone_ssim"])


def sweep(
    folder: Path,
    *,
    sampler: str,
    trials: int,
    seconds: float,
    seed: int = 0,
    presets: Sequence[str] = PRESETS,
) -> SweepResult:
    """Presets side by side on two slots."""
    spaces = {name: SPACES[name] for name in presets}
    plan = Plan(spaces=spaces, trials=trials, slots=2, sampler=sampler, seed=seed)
    return run_sweep(plan, Zdt1(spaces, seconds=seconds), folder)


def share_of_truth(result: SweepResult, preset: str) -> float:
    """Hypervolume of the preset's trials against (1, 1), as a share of ZDT1's own."""
    return share_of(result, preset, np.zeros(2)) / TRUE_HYPERVOLUME


def share_of(result: SweepResult, preset: str, reference: NDArray[np.float64]) -> float:
    """Hypervolume of the preset's completed trials."""
    table = result.table
    rows = table[(table["preset"] == preset) & (table["state"] == "complete")].to_dict("records")
    return hypervolume(losses(rows, GOALS), reference)


def overhead(root: Path, trials: int) -> list[Row]:
    """Per-trial overhead and the wall ratio of trials that take 1 s."""
    idle = sweep(root / "idle", sampler="random", trials=trials, seconds=0.0)
    busy = sweep(root / "busy", sampler="random", trials=trials, seconds=1.0)
    start_up = idle.wall_seconds - idle.search_seconds
    ideal = busy.compute_seconds / 2
    count = 2 * trials
    return [
        ("start of two workers until the first result", f"{start_up:.1f} s"),
        (f"empty trial, mean of {count}", f"{idle.search_seconds / count * 1000:.0f} ms"),
        (f"{count} trials of 1 s on 2 slots: wall ÷ (compute ÷ slots), start left out", _ratio(busy, ideal)),
        ("the same with the start", f"{busy.wall_seconds / ideal:.3f}"),
    ]


def _ratio(busy: SweepResult, ideal: float) -> str:
    first = busy.compute_seconds / len(busy.table)  # the first results end the start
    return f"{(busy.search_seconds + first) / ideal:.3f}"


def crowd(root: Path, trials: int) -> list[Row]:
    """Whether the driver slows down: seconds per empty trial, early and late in a long sweep."""
    done: list[float] = []
    plan = Plan(spaces={"balanced": SPACES["balanced"]}, trials=trials, slots=2, sampler="random")
    problem = Zdt1(plan.spaces)
    run_sweep(plan, problem, root, on_trial=lambda trial: done.append(time.monotonic()))
    part = max(trials // 5, 1)
    early, late = np.diff(done[:part]).mean(), np.diff(done[-part:]).mean()
    return [
        (f"{trials} empty trials: one of the first {part}", f"{early * 1000:.0f} ms"),
        (f"one of the last {part}", f"{late * 1000:.0f} ms ({late / early:.2f} times)"),
    ]


def early_stop(root: Path, trials: int, seeds: int) -> list[Row]:
    """What `--halving` saves on noisy cases, and what it costs in hypervolume."""
    saved, kept = [], []
    for seed in range(seeds):
        found = []
        for halving in (False, True):
            spaces = {"balanced": SPACES["balanced"]}
            plan = Plan(spaces=spaces, trials=trials, slots=2, sampler="random", seed=seed, halving=halving)
            problem = Zdt1(spaces, cases=10, noise=0.1)
            found.append(run_sweep(plan, problem, root / f"{halving}-{seed}"))
        whole, stopped = found
        saved.append(1 - stopped.table["cases"].sum() / whole.table["cases"].sum())
        values = losses(whole.table.to_dict("records"), GOALS)
        reference = np.asarray(values.max(axis=0))
        kept.append(share_of(stopped, "balanced", reference) / share_of(whole, "balanced", reference))
    return [
        (f"--halving, {trials} random trials on 10 noisy cases: cases not visited", _spread(saved)),
        ("hypervolume kept against visiting all", _spread(kept)),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def truth(root: Path, trials: int, seeds: int) -> list[Row]:
    """Share of the true hypervolume, sampler beside random search."""
    rows = []
    for sampler in ("auto", "random"):
        found = []
        for seed in range(seeds):
            result = sweep(root / f"{sampler}-{seed}", sampler=sampler, trials=trials, seconds=0.0, seed=seed)
            found += [share_of_truth(result, preset) for preset in SPACES]
        spread = f"{np.mean(found):.1%} (lowest of {len(found)}: {min(found):.1%})"
        rows.append(
            (f"ZDT1 with 7 values, {trials} trials, sampler {sampler}: share of true hypervolume", spread)
        )
    return rows


def resume(root: Path, trials: int) -> list[Row]:
    """Seconds until a sweep with that many finished trials could suggest the next one, and has its table."""
    plan = Plan(spaces={"balanced": SPACES["balanced"]}, trials=trials, sampler="random")
    root.mkdir(parents=True)
    study = PresetStudy(SPACES["balanced"], plan, open_storage(root))
    for number in range(trials):
        params = study.suggest(str(number))["params"]
        metrics = {"brain_ssim": params["alpha"], "bone_ssim": params["beta"]}
        record = {
            "state": "complete",
            "error": "",
            "metrics": metrics,
            "scores": [],
            "cases": 1,
            "seconds": 1.0,
        }
        study.on_trial_complete(str(number), {RECORD: json.dumps(record)})
    start = time.perf_counter()
    again = PresetStudy(SPACES["balanced"], plan, open_storage(root))
    opened = time.perf_counter() - start
    table = collect(plan, {"balanced": again})
    rows = [(f"open a sweep with {trials} finished trials", f"{opened:.2f} s")]
    return [*rows, (f"its table of {len(table)} trials", f"{time.perf_counter() - start - opened:.2f} s")]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials and seeds; nothing is written")
    parser.add_argument("--model", type=Path, metavar="M", help="model folder of the embedded cohort")
    parser.add_argument("--data", type=Path, metavar="D.zarr", help="the embedded cohort, prepared")
    parser.add_argument(
        "--work",
        type=Path,
        default=WORK,
        metavar="DIR",
        help="where work is kept (%(default)s; -quick added for --quick)",
    )
    args = parser.parse_args(words)
    if (args.model is None) != (args.data is None):
        parser.error("--model and --data belong together; without both, a small model is trained")
    return args


def once(root: Path, name: str, measure: Callable[[Path], list[Row]]) -> list[Row]:
    """The rows that `measure` gives, given a folder of its own; kept, so that they are measured only once."""
    kept = root / f"{name}.json"
    if not kept.exists():
        shutil.rmtree(root / name, ignore_errors=True)
        rows = measure(root / name)
        kept.write_text(json.dumps(rows), encoding="utf-8")
    return [(what, value) for what, value in json.loads(kept.read_text(encoding="utf-8"))]


def main() -> int:
    """Measure and write the tables."""
    args = parse()
    quick = args.quick
    root = args.work.with_name(f"{args.work.name}-quick") if quick else args.work
    root.mkdir(parents=True, exist_ok=True)
    model, data = (args.model, args.data) if args.model else cohort.make_model(root)
    trials, seeds = (12, 2) if quick else (60, 5)
    known = [
        ("overhead", lambda folder: overhead(folder, 8 if quick else 30)),
        ("crowd", lambda folder: crowd(folder, 100 if quick else 1000)),
        ("resume", lambda folder: resume(folder, 200 if quick else 1000)),
        ("truth", lambda folder: truth(folder, 40 if quick else TRUTH_TRIALS, 1 if quick else 2)),
        ("stop", lambda folder: early_stop(folder, 30 if quick else 40, 1 if quick else 2)),
    ]
    with session():
        found = {name: once(root, name, measure) for name, measure in known}
        sweeps = cohort.run_all(root / "cohort-sweeps", model, data, trials=trials, seeds=seeds)
    tables = {
        "Machinery": [*found["overhead"], *found["crowd"], *found["resume"]],
        "A known front": [*found["truth"], *found["stop"]],
        f"Embedded cohort: {trials} trials per preset, {seeds} seeds": [
            *cohort.compare_samplers(sweeps),
            *cohort.compare_presets(sweeps["auto"]),
        ],
        "Sharing a batch": once(root, "batch", lambda folder: cohort.batching(model, data)),
    }
    text = to_markdown(tables)
    if not quick:
        RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def to_markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """A section per table."""
    lines = ["# Sweeps", "", "`python tests/benchmarks/sweeps.py`", ""]
    for title, rows in tables.items():
        lines += [f"## {title}", "", "| what | value |", "| --- | --- |"]
        lines += [f"| {what} | {value} |" for what, value in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

"""The sweep machinery on a problem with a known front: `python tests/benchmarks/sweeps.py [--quick]`.

Measures the overhead of a trial, wall time against compute, the share of ZDT1's true hypervolume that a sweep
reaches beside random search, and how long it takes to go on after 1,000 finished trials. Writes
tests/benchmarks/results/sweeps.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from clinfuse_platform.session import session
from clinfuse_sweeps.analytic import TRUE_HYPERVOLUME, Zdt1
from clinfuse_sweeps.fronts import hypervolume
from clinfuse_sweeps.goals import losses
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import SweepResult, collect, run_sweep
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.studies import PresetStudy, open_storage
from clinfuse_sweeps.trials import RECORD

from clinfuse.presets import load_presets

RESULT = Path(__file__).parent / "results" / "sweeps.md"
SPACES = {name: space_around(load_presets()[name]) for name in ("balanced", "bone_tumor")}


def sweep(folder: Path, *, sampler: str, trials: int, seconds: float, seed: int = 0) -> SweepResult:
    """Two presets on two slots."""
    plan = Plan(spaces=SPACES, trials=trials, slots=2, sampler=sampler, seed=seed)
    return run_sweep(plan, Zdt1(SPACES, seconds=seconds), folder)


def share_of_truth(result: SweepResult, preset: str) -> float:
    """Hypervolume of the preset's trials against (1, 1), as a share of ZDT1's own."""
    plan_goals = Plan(spaces=SPACES, trials=1).goals
    rows = result.table[result.table["preset"] == preset].to_dict("records")
    return hypervolume(losses(rows, plan_goals), np.zeros(2)) / TRUE_HYPERVOLUME


def overhead(root: Path, trials: int) -> list[tuple[str, str]]:
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


def truth(root: Path, trials: int, seeds: int) -> list[tuple[str, str]]:
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


def resume(root: Path, trials: int) -> list[tuple[str, str]]:
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


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials and seeds")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder, session():
        root = Path(folder)
        rows = overhead(root / "overhead", 8 if quick else 30)
        rows += truth(root / "truth", 40 if quick else 80, 1 if quick else 5)
        rows += resume(root / "resume", 200 if quick else 1000)
    lines = ["# Sweeps", "", "`python tests/benchmarks/sweeps.py`", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in rows]
    text = "\n".join(lines) + "\n"
    if not quick:
        RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

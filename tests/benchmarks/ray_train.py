"""A training step on Ray Train against a bare loop, one worker: `python tests/benchmarks/ray_train.py`.

Both run the same core loop on the same batches. They take turns, a stretch of steps each, so that both see the same
machine; the wall time of a stretch from its 6th step to its last is compared with that of the bare stretches before
and after it, reports and checkpoints included. The ratio is the median over the stretches. Goal: at most 1.02.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from clinfuse_platform.launch import Workers, launch
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import train_plan
from clinfuse_platform.provenance import data_hash
from clinfuse_platform.runs import Run, create_run
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.session import session
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case
from clinfuse.training import fit, recipe

RESULT = Path(__file__).parent / "results" / "ray_train.md"
FIRST = 6
PLAUSIBLE = 0.97
WORKER = Workers(count=1, cpus=1)  # one thread on both sides: two would wait for each other on a busy machine


def make_store(path: Path) -> None:
    """Four noise cases of 8×128×128 voxels; content does not matter for time."""
    rng, store, cases = np.random.default_rng(0), CaseStore(path), []
    for number in range(4):
        images = rng.random((2, 8, 128, 128), dtype=np.float32)
        masks = (rng.random((3, 8, 128, 128)) < 0.2).astype(np.uint8)
        attrs = {"patient": f"p{number}", "split": "train"}
        cases.append(
            Case(
                case_id=f"p{number}",
                anatomy=images[0],
                companion=images[1],
                brain=masks[0],
                bone=masks[1],
                lesion=masks[2],
                affine=np.eye(4),
                attrs=attrs,
            )
        )
        store.write(cases[-1])
    store.commit_manifest([manifest_row(case) for case in cases])


def bare(settings: dict[str, object], steps: int) -> float:
    """Seconds per step of the denoiser's phase in this process."""
    plan = train_plan(Work(job="train", settings=settings))
    head, phase = plan.phases
    done = {head.name: head.build({})}
    times: list[float] = []
    fit(
        phase.build(done),
        phase.loss(done),
        phase.batches(done),
        steps=phase.steps,
        until=steps,
        learning_rate=phase.learning_rate,
        effort=phase.effort,
        on_step=lambda step, logs, state: times.append(time.monotonic()),
    )
    return (times[-1] - times[FIRST - 1]) / (len(times) - FIRST)


def on_ray(settings: dict[str, object], run: Run, start: int, steps: int) -> float:
    """The same through Ray Train with one worker: the run goes on from `start` for that many steps."""
    launch("train", "model", run, {**settings, "until": {"denoiser": start + steps}}, WORKER)
    rows = run.metrics().query(f"phase == 'denoiser' and step > {start}").set_index("step")["elapsed"]
    return float((rows.iloc[-1] - rows.iloc[FIRST - 1]) / (rows.index[-1] - rows.index[FIRST - 1]))


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of a stretch")
    parser.add_argument("--stretches", type=int, default=5, help="of each side")
    arguments = parser.parse_args()
    steps, count = arguments.steps, arguments.stretches
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # as this process, or Ray's side would yield to all others
    torch.set_num_threads(WORKER.cpus_each)
    with tempfile.TemporaryDirectory() as text, session():
        make_store(Path(text) / "bench.zarr")
        data = str(Path(text) / "bench.zarr")
        config = recipe("cpu-small", lesion_steps=1, denoiser_steps=steps * count + 1).to_dict()
        settings: dict[str, object] = {"config": config, "data": data, "data_hash": data_hash(data)}
        run = create_run("bench", text, settings)
        bares, rays = [bare(settings, steps)], []
        for number in range(count):
            rays.append(on_ray(settings, run, number * steps, steps))
            bares.append(bare(settings, steps))
    ratios = [2 * ray / (bares[i] + bares[i + 1]) for i, ray in enumerate(rays)]
    write(bares, rays, ratios, steps)
    return 0


def write(bares: list[float], rays: list[float], ratios: list[float], steps: int) -> None:
    """The table, printed and kept."""
    lines = [
        "# Ray Train against a bare loop, one worker",
        "",
        f"`python tests/benchmarks/ray_train.py`: {len(rays)} stretches of {steps} steps, by turns, "
        f"on {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} at the end).",
        "",
        "| what | median | least to most |",
        "| --- | --- | --- |",
        f"| bare step | {row(bares, 1e3)} |",
        f"| Ray Train step, reports and checkpoints included | {row(rays, 1e3)} |",
        f"| ratio (goal 1.02) | {row(ratios, 1)} |",
    ]
    if statistics.median(ratios) < PLAUSIBLE:
        lines += [
            "",
            "Ray Train cannot be faster than the loop it runs: the sides did not get the same machine. This is no",
        ]
        lines += ["proof of the goal; measure again where nothing else runs."]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


def row(values: list[float], factor: float) -> str:
    """Median, least and most; in ms with factor 1000."""
    unit, digits = (" ms", 1) if factor > 1 else ("", 3)
    told = [
        f"{factor * value:.{digits}f}{unit}"
        for value in (statistics.median(values), min(values), max(values))
    ]
    return f"{told[0]} | {told[1]} to {told[2]}"


if __name__ == "__main__":
    raise SystemExit(main())

"""A training step on Ray Train against a bare loop, one worker: `python tests/benchmarks/ray_train.py`.

Both run the same core loop on the same batches; the wall time from the 6th step to the last is compared, reports and
checkpoints included. Goal: ratio at most 1.02. Bare, Ray, bare again; the bare time is the mean of both.
"""

from __future__ import annotations

import argparse
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
from clinfuse_platform.runs import create_run
from clinfuse_platform.session import session
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case
from clinfuse.training import fit, recipe

RESULT = Path(__file__).parent / "results" / "ray_train.md"
FIRST = 6


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


def bare(settings: dict[str, object]) -> float:
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
        learning_rate=phase.learning_rate,
        on_step=lambda step, logs, state: times.append(time.monotonic()),
    )
    return (times[-1] - times[FIRST - 1]) / (len(times) - FIRST)


def on_ray(settings: dict[str, object], folder: Path) -> float:
    """The same through Ray Train with one worker."""
    run = create_run("bench", folder, settings)
    launch("train", "model", run, settings, Workers(count=1))
    rows = run.metrics().query("phase == 'denoiser'").set_index("step")["elapsed"]
    return float((rows.iloc[-1] - rows.loc[FIRST]) / (rows.index[-1] - FIRST))


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    torch.set_num_threads(Workers(count=1).cpus_each)
    with tempfile.TemporaryDirectory() as text, session():
        folder = Path(text)
        make_store(folder / "bench.zarr")
        data = str(folder / "bench.zarr")
        config = recipe("cpu-small", lesion_steps=1, denoiser_steps=steps).to_dict()
        settings: dict[str, object] = {"config": config, "data": data, "data_hash": data_hash(data)}
        before = bare(settings)
        ray_seconds = on_ray(settings, folder)
        after = bare(settings)
    ratio = ray_seconds / ((before + after) / 2)
    lines = [
        "# Ray Train against a bare loop, one worker",
        "",
        "`python tests/benchmarks/ray_train.py`",
        "",
        "| what | value |",
        "| --- | --- |",
        f"| bare step, before and after | {before * 1e3:.1f} ms, {after * 1e3:.1f} ms |",
        f"| Ray Train step, reports and checkpoints included | {ray_seconds * 1e3:.1f} ms |",
        f"| ratio (goal 1.02) | {ratio:.3f} |",
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

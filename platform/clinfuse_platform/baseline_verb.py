"""The verb train-baseline: a learned method of others, reimplemented small, trained on the same data as ours."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from clinfuse import RESEARCH_USE
from clinfuse.verbs import Verb

KINDS = ("conv", "test_time", "fusiondiff", "diffif", "ddfm")


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `clinfuse train-baseline`."""
    parser.add_argument("data", metavar="D.zarr", help="dataset written by clinfuse prep")
    parser.add_argument("--kind", choices=KINDS, required=True, help="the paper's idea")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the trained baseline")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps (%(default)s)")
    parser.add_argument("--crop", type=int, default=96, metavar="PIXELS", help="side of a crop (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="crops per step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")


def run_baseline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the dataset's training split; the folder is named NAME=DIR in `clinfuse evaluate`."""
    from clinfuse_prep.reader import ShardReader

    from clinfuse.baselines.learned import save_learned, train_learned
    from clinfuse.console import say

    reader = ShardReader(
        arguments.data,
        split="train",
        crop=(arguments.crop, arguments.crop),
        batch_size=arguments.batch_size,
        spatial_dims=2,
        seed=arguments.seed,
    )
    shown = max(1, arguments.steps // 10)
    last: dict[str, float] = {}

    def on_step(step: int, logs: dict[str, float]) -> None:
        last.update(logs)
        if step % shown == 0:
            values = ", ".join(f"{k} {v:.4f}" for k, v in logs.items() if k not in ("step", "seconds"))
            say(f"  step {step} of {arguments.steps}: {values}")

    started = time.perf_counter()
    module = train_learned(
        arguments.kind,
        reader,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        on_step=on_step,
        device=arguments.device,
    )
    seconds = time.perf_counter() - started
    folder = Path(arguments.out)
    save_learned(module, folder, steps=arguments.steps, seed=arguments.seed, seconds=seconds)
    parameters = sum(p.numel() for p in module.parameters())
    return {
        "result": str(folder),
        "kind": arguments.kind,
        "parameters": parameters,
        "seconds": seconds,
        "last": last,
        "use": f"clinfuse evaluate {arguments.kind}={folder} --data …",
        "research_use": RESEARCH_USE,
    }


TRAIN_BASELINE = Verb(
    name="train-baseline",
    help="train a small reimplementation of another learned fusion method on the same data",
    add_arguments=add_baseline_arguments,
    run=run_baseline,
)

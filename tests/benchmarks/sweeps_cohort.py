"""The sweep on the embedded cohort: what a search finds beside random trials, per preset, over several seeds.

Used by tests/benchmarks/sweeps.py. All runs of a preset see the same slabs and the same fusion noise, so that they
search the same function; only the samplers' seeds differ.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from clinfuse_sweeps.compare import Comparison, Entry, Sweep, compare, open_sweep, position
from clinfuse_sweeps.fronts import common_reference, hypervolume
from clinfuse_sweeps.fusion_evaluator import FusionEvaluator, FusionRecipe, FusionSettings, load_slabs
from clinfuse_sweeps.goals import losses
from clinfuse_sweeps.plan import Plan
from clinfuse_sweeps.runner import run_sweep
from clinfuse_sweeps.space import space_around
from clinfuse_sweeps.trainable import Suggestion
from scipy.stats import t

from clinfuse.presets import load_presets

PRESETS = ("balanced", "bone_tumor")
SLICES, STEPS, CASES = 1, 3, 1
Row = tuple[str, str]


def make_model(root: Path) -> tuple[Path, Path]:
    """The embedded cohort, prepared, and a model trained on it in a minute or two: (model, data); made once.

    Not the one trained in seconds (cpu-debug): guidance has no hold on it, its images depend on α ÷ β alone, so that
    every trial lies on the front and there is nothing to search.
    """
    data, model = root / "cohort.zarr", root / "runs" / "bench" / "model"
    training = ["--recipe", "cpu-small", "--run", "bench", "--storage", root / "runs", "--workers", 2]
    steps: list[tuple[Path, list[object]]] = [
        (root / "cohort" / "cohort.json", ["cohort", "--out", root / "cohort"]),
        (data / "manifest.parquet", ["prep", root / "cohort", "--out", data, "--resume"]),
        (model, ["train", data, *training]),
    ]
    for made, words in steps:
        if not made.exists():
            subprocess.run([sys.executable, "-m", "clinfuse_platform.cli", *map(str, words)], check=True)
    return model, data


def run_all(root: Path, model: Path, data: Path, *, trials: int, seeds: int) -> dict[str, list[Sweep]]:
    """One sweep per sampler and seed, both presets in each."""
    slabs = load_slabs(data, split="val", slices=SLICES, limit=CASES)
    spaces = {name: space_around(load_presets()[name], {"jitter_mm": None}) for name in PRESETS}
    settings = FusionSettings(model=str(model), spaces=spaces, steps=STEPS)
    found: dict[str, list[Sweep]] = {"auto": [], "random": []}
    for seed in range(seeds):
        for sampler, sweeps in found.items():
            facts = {"cases": [slab.case_id for slab in slabs], "slices": SLICES, "steps": STEPS}
            plan = Plan(spaces=spaces, trials=trials, sampler=sampler, seed=seed, slots=2, facts=facts)
            folder = root / f"{sampler}-{seed}"
            run_sweep(plan, FusionRecipe(settings, slabs), folder, resume=True)
            sweeps.append(open_sweep(folder))
    return found


def compare_samplers(found: dict[str, list[Sweep]]) -> list[Row]:
    """Hypervolume of the search beside random trials, seed by seed, on one reference point per preset."""
    rows = []
    for preset in PRESETS:
        values = {name: [_losses(sweep, preset) for sweep in sweeps] for name, sweeps in found.items()}
        everything = [v for runs in values.values() for v in runs]
        reference = common_reference(everything)
        whole = hypervolume(np.concatenate(everything), reference)
        share = {name: [hypervolume(v, reference) / whole for v in runs] for name, runs in values.items()}
        gain = np.subtract(share["auto"], share["random"])
        half = 0.0
        if len(gain) > 1:
            half = float(t.ppf(0.975, len(gain) - 1)) * float(gain.std(ddof=1)) / len(gain) ** 0.5
        rows += [
            (f"{preset}: share of the pooled hypervolume, search", _spread(share["auto"])),
            (f"{preset}: the same, random", _spread(share["random"])),
            (
                f"{preset}: gain of the search, mean ± 95 % interval over seeds",
                f"{gain.mean():+.2%} ± {half:.2%}; ahead in {int((gain > 0).sum())} of {len(gain)} seeds",
            ),
        ]
    return rows


def _losses(sweep: Sweep, preset: str) -> np.ndarray:
    table = sweep.table[(sweep.table["preset"] == preset) & sweep.table["feasible"]]
    return losses(table.to_dict("records"), sweep.plan.goals)


def _spread(shares: Sequence[float]) -> str:
    return f"{np.mean(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})"


def compare_presets(sweeps: Sequence[Sweep]) -> list[Row]:
    """Where each preset stands against its front, run by run, and how the presets' fronts differ."""
    rows = []
    for preset in PRESETS:
        places = [_place(compare([sweep], presets=[preset])) for sweep in sweeps]
        rows.append((f"{preset}: where its own values stand", _count(places)))
    pooled = compare(sweeps)
    for entry in pooled.entries:
        front = entry.table[entry.table["on_front"]]
        text = f"brain {_span(front['brain_ssim'])}, bone {_span(front['bone_ssim'])}; {_knee(entry)}"
        rows.append((f"{entry.label}: SSIM along the pooled front", text))
    return rows


def _place(comparison: Comparison) -> str:
    words = position(comparison.entries[0], comparison.goals)
    return "dominated" if "dominated" in words else words


def _count(places: Sequence[str]) -> str:
    counts = pd.Series(places).value_counts()
    return ", ".join(f"{words} ({n} of {len(places)} runs)" for words, n in counts.items())


def _span(values: pd.Series) -> str:
    return f"{values.min():.3f}–{values.max():.3f}"


def _knee(entry: Entry) -> str:
    knee = entry.knee
    if knee is None:
        return "no knee"
    return f"knee brain {knee['brain_ssim']:.3f}, bone {knee['bone_ssim']:.3f}"


def batching(model: Path, data: Path) -> list[Row]:
    """Processor time per slice against the number of slices that share a batch: is there anything to win?"""
    space = space_around(load_presets()["balanced"])
    rows = []
    for slices in (1, 2, 4, 8, 16):
        slabs = load_slabs(data, split="train", slices=slices, limit=1)
        settings = FusionSettings(model=str(model), spaces={"balanced": space}, steps=STEPS)
        evaluator = FusionEvaluator(settings, slabs)
        suggestion = Suggestion(preset="balanced", number=0, params=space.origin())
        times = []
        for _ in range(4):
            start = time.process_time()
            evaluator.fuse(suggestion, 0)
            times.append((time.process_time() - start) / slices)
        rows.append(
            (f"{slices} slices in a batch, one thread: processor time per slice", f"{min(times):.3f} s")
        )
    return rows

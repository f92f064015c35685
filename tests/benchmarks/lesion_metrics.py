"""Dice, NSD and HD95 on 192³ masks beside MONAI and surface-distance: `python tests/benchmarks/lesion_metrics.py`.

All in one run on one core, processor time, best of the repeats, interleaved; the values are compared too. Then the
peak memory of ours against the volume's size. Writes tests/benchmarks/results/lesion_metrics.md. The goal is a
ratio of at most 0.2; the command fails if a ratio is above, or if values disagree.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import surface_distance
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from clinfuse.metrics import lesion_scores

RESULT = Path(__file__).parent / "results" / "lesion_metrics.md"
SIDE, SPACING, TAU, GOAL = 192, (2.0, 1.0, 1.5), 2.0, 0.2
Mask = NDArray[np.bool_]


def blob(side: int, centre: tuple[float, float, float], radius: float, seed: int) -> Mask:
    """A ball with a wavy border."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side,) * 3).astype(np.float32), 6)
    axes = np.ogrid[:side, :side, :side]
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)))
    return np.asarray(distance + 3 * noise / noise.std() < radius)


def ours(a: Mask, b: Mask) -> tuple[float, float, float]:
    scores = lesion_scores(a, b, SPACING, TAU)
    return scores.dice, scores.nsd, scores.hd95_mm


def theirs_surface_distance(a: Mask, b: Mask) -> tuple[float, float, float]:
    distances = surface_distance.compute_surface_distances(a, b, SPACING)
    return (
        float(surface_distance.compute_dice_coefficient(a, b)),
        float(surface_distance.compute_surface_dice_at_tolerance(distances, TAU)),
        float(surface_distance.compute_robust_hausdorff(distances, 95)),
    )


def theirs_monai(a: Mask, b: Mask) -> tuple[float, float, float]:
    y, x = (torch.from_numpy(m)[None, None].float() for m in (a, b))
    surface = compute_surface_dice(x, y, [TAU], include_background=True, spacing=SPACING, use_subvoxels=True)
    hausdorff = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=SPACING)
    return float(compute_dice(x, y)), float(surface), float(hausdorff)


SYSTEMS: dict[str, Callable[[Mask, Mask], tuple[float, float, float]]] = {
    "clinfuse": ours,
    "surface-distance": theirs_surface_distance,
    "MONAI": theirs_monai,
}


def pairs(side: int) -> dict[str, tuple[Mask, Mask]]:
    """From a small lesion to one that fills a third of the head, and one found far from where it is."""
    c, d = (90.0, 95.0, 100.0), (93.0, 97.0, 98.0)
    found = {f"radius {r}": (blob(side, c, r, 1), blob(side, d, r, 2)) for r in (10, 15, 30, 60)}
    found["radius 15, 60 voxels apart"] = (blob(side, c, 15, 1), blob(side, (90.0, 40.0, 75.0), 15, 2))
    return found


def measure(a: Mask, b: Mask, repeats: int) -> tuple[dict[str, float], dict[str, tuple[float, float, float]]]:
    """Best processor seconds and the values, by system."""
    best, values = dict.fromkeys(SYSTEMS, np.inf), {}
    for _ in range(repeats):
        for name, system in SYSTEMS.items():
            start = time.process_time()
            values[name] = system(a, b)
            best[name] = min(best[name], time.process_time() - start)
    return best, values


def agree(values: dict[str, tuple[float, float, float]]) -> bool:
    """Ours equals surface-distance throughout, and MONAI in Dice and NSD (its HD95 counts border voxels)."""
    o, s, m = (np.array(values[name]) for name in SYSTEMS)
    return bool(np.allclose(o, s, atol=1e-5) and np.allclose(o[:2], m[:2], atol=1e-5))


def peak_bytes_per_voxel(side: int) -> float:
    a, b = blob(side, (side / 2,) * 3, side / 3, 1), blob(side, (side / 2 + 2,) * 3, side / 3, 2)
    tracemalloc.start()
    ours(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / a.size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    head = (
        f"| masks of {SIDE}³ | clinfuse ms | surface-distance ms | ratio | MONAI ms | ratio | values agree |"
    )
    lines, good = [head, "|---|---:|---:|---:|---:|---:|---|"], True
    for name, (a, b) in pairs(SIDE).items():
        seconds, values = measure(a, b, repeats)
        own = seconds["clinfuse"]
        ratios = own / seconds["surface-distance"], own / seconds["MONAI"]
        same = agree(values)
        good &= same and max(ratios) <= GOAL
        ms = [1000 * seconds[system] for system in SYSTEMS]
        lines.append(
            f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} | {ratios[0]:.2f} | {ms[2]:.1f} | {ratios[1]:.2f} "
            f"| {'yes' if same else 'NO'} |"
        )
    memory = ", ".join(f"{side}³: {peak_bytes_per_voxel(side):.1f}" for side in (64, 96, 128, 192))
    text = [
        "# Lesion metrics: Dice, NSD@2 mm and HD95 together",
        "",
        f"Spacing {SPACING} mm, one core, processor time, best of {repeats} interleaved repeats. Goal: ratio ≤ {GOAL}.",
        "MONAI: `compute_surface_dice(use_subvoxels=True)`, `compute_hausdorff_distance`, `compute_dice`; its HD95",
        "counts border voxels, so only its Dice and NSD are compared.",
        "",
        *lines,
        "",
        f"Peak memory beyond the masks, bytes per voxel of the volume (ball of a third of the side): {memory}.",
        "",
    ]
    RESULT.write_text("\n".join(text), encoding="utf-8")
    sys.stdout.write("\n".join(text) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""FSIM beside a straightforward torch version, and evaluation of a volume: `python tests/benchmarks/fsim.py`.

One core, processor time, best of the repeats, interleaved. The straightforward version follows the paper's formulas
line by line: filters made anew for each call, one image at a time, one orientation and scale after the other.
Writes tests/benchmarks/results/fsim.md; fails if ours is slower or the values differ.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clinfuse.case import Case
from clinfuse.evaluation import evaluate_case
from clinfuse.metrics import fsim
from clinfuse.presets import load_presets

MEMORY_GOAL = 6.0
RESULT = Path(__file__).parent / "results" / "fsim.md"


def plain_phase_congruency(image: Tensor) -> Tensor:
    """Zhang et al. 2011, Eq. 1 to 3, with Kovesi's noise threshold; (H, W) greys."""
    height, width = image.shape
    v = torch.fft.ifftshift((torch.arange(height) - height // 2) / height)[:, None]
    u = torch.fft.ifftshift((torch.arange(width) - width // 2) / width)[None]
    radius, theta = torch.sqrt(u**2 + v**2), torch.atan2(-v, u)
    low = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1
    spectrum, energy_all, amplitude_all = (
        torch.fft.fft2(image),
        torch.zeros_like(image),
        torch.zeros_like(image),
    )
    for o in range(4):
        angle = theta - o * math.pi / 4
        spread = torch.exp(-(torch.atan2(angle.sin(), angle.cos()) ** 2) / (2 * (math.pi / 4.8) ** 2))
        responses, kernels = [], []
        for s in range(4):
            log_gabor = torch.exp(-(torch.log(radius * 6 * 2**s) ** 2) / (2 * math.log(0.55) ** 2)) * low
            log_gabor[0, 0] = 0
            responses.append(torch.fft.ifft2(spectrum * log_gabor * spread))
            kernels.append(torch.fft.ifft2(log_gabor * spread).real * math.sqrt(height * width))
            if s == 0:
                power = ((log_gabor * spread) ** 2).sum()
        even, odd = sum(r.real for r in responses), sum(r.imag for r in responses)
        norm = torch.sqrt(even**2 + odd**2) + 1e-7
        energy = torch.zeros_like(image)
        for r in responses:
            energy += (r.real * even + r.imag * odd) / norm - ((r.real * odd - r.imag * even) / norm).abs()
            amplitude_all += r.abs()
        noise = -torch.median(responses[0].abs() ** 2) / math.log(0.5) / power
        own = sum((k**2).sum() for k in kernels)
        cross = sum((kernels[i] * kernels[j]).sum() for i in range(4) for j in range(i + 1, 4))
        tau = torch.sqrt(noise * own + 2 * noise * cross)
        threshold = tau * (math.sqrt(math.pi / 2) + 2 * math.sqrt(2 - math.pi / 2)) / 1.7
        energy_all += (energy - threshold).clamp_min(0)
    return energy_all / (amplitude_all + 1e-7)


def plain_fsim(x: Tensor, y: Tensor) -> Tensor:
    """FSIM of (B, 1, H, W) in [0, 1], (B,)."""
    kernel = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 16
    scores = []
    for image, reference in zip(x[:, 0] * 255, y[:, 0] * 255, strict=True):
        pc_x, pc_y = plain_phase_congruency(image), plain_phase_congruency(reference)
        gradients = []
        for i in (image, reference):
            gx = F.conv2d(i[None, None], kernel[None, None], padding=1)
            gy = F.conv2d(i[None, None], kernel.T[None, None], padding=1)
            gradients.append(torch.sqrt(gx**2 + gy**2)[0, 0])
        s_pc = (2 * pc_x * pc_y + 0.85) / (pc_x**2 + pc_y**2 + 0.85)
        s_g = (2 * gradients[0] * gradients[1] + 160) / (gradients[0] ** 2 + gradients[1] ** 2 + 160)
        weight = torch.maximum(pc_x, pc_y)
        scores.append((s_pc * s_g * weight).sum() / weight.sum())
    return torch.stack(scores)


def phantom(shape: tuple[int, int, int]) -> Case:
    """A noisy head of nested ellipsoids, 2 mm voxels."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    r = np.sqrt(z**2 / 0.9 + y**2 + x**2 / 0.85)
    rng = np.random.default_rng(0)
    brain, bone = r < 0.72, (r > 0.78) & (r < 0.88)
    lesion = (z - 0.1) ** 2 + (y - 0.2) ** 2 + (x + 0.2) ** 2 < 0.03
    anatomy = np.where(brain, 0.5, 0.05) + 0.3 * lesion + rng.normal(0, 0.05, shape)
    companion = np.where(bone, 0.8, 0) + 0.1 * brain + rng.normal(0, 0.02, shape)
    a, c = (np.clip(image, 0, 1).astype(np.float32) for image in (anatomy, companion))
    return Case(
        case_id="phantom",
        anatomy=a,
        companion=c,
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        brain=brain.astype(np.uint8),
        bone=bone.astype(np.uint8),
        lesion=lesion.astype(np.uint8),
    )


@dataclass(frozen=True)
class Doubt:
    """A result with uncertainty, so that its metrics are part of the measurement."""

    uncertainty: np.ndarray
    interval: np.ndarray
    info: dict[str, Any]


def peak_over_case(side: int) -> float:
    """Peak memory of a whole evaluation (uncertainty included) beyond the case, in units of the case's bytes."""
    case, preset = phantom((side, side, side)), load_presets()["balanced"]
    fused = np.maximum(case.anatomy, case.companion)
    result = Doubt(np.abs(fused - case.anatomy), np.full(case.shape, 0.1, np.float32), {})
    size = case.anatomy.nbytes + case.companion.nbytes + sum(mask.nbytes for mask in case.masks.values())
    tracemalloc.start()
    evaluate_case(
        case, fused, "max", preset=preset, metrics="all", result=result, field_slices=8, fmi_slices=1
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / size


def best(seconds: float, start: float) -> float:
    return min(seconds, time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(8, 1, 32, 32, generator=generator)
    x = F.interpolate(small, size=(256, 256), mode="bicubic").clamp(0, 1)
    y = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    own = plain = math.inf
    for _ in range(repeats):
        start = time.process_time()
        ours = fsim(x, y)
        own, start = best(own, start), time.process_time()
        theirs = plain_fsim(x, y)
        plain = best(plain, start)
    gap = float((ours - theirs).abs().max())
    case, preset = phantom((96, 112, 96)), load_presets()["balanced"]
    fused = np.maximum(case.anatomy, case.companion)
    spent = {"roi": math.inf, "all": math.inf}
    for _ in range(3):
        for metrics, least in spent.items():
            start = time.process_time()
            evaluate_case(case, fused, "max", preset=preset, metrics=metrics)  # type: ignore[arg-type]
            spent[metrics] = best(least, start)
    peaks = {side: peak_over_case(side) for side in (64, 96, 128)}
    memory = ", ".join(f"{side}³ {peak:.1f}" for side, peak in peaks.items())
    text = [
        "# FSIM and evaluation of a volume",
        "",
        f"One core, processor time, best of {repeats} interleaved repeats.",
        "",
        "| what | ours | straightforward | ratio | goal |",
        "|---|---:|---:|---:|---:|",
        f"| FSIM, 8 pairs of 256² | {1000 * own:.0f} ms | {1000 * plain:.0f} ms | {own / plain:.2f} | ≤ 1 |",
        "",
        f"Largest difference of the values: {gap:.1e}.",
        "",
        f'`evaluate_case` on 96×112×96 without lesion head: metrics="roi" {spent["roi"]:.2f} s (goal 2), '
        f'metrics="all" {spent["all"]:.2f} s (goal 6).',
        "",
        f"Peak memory of an evaluation with uncertainty beyond the case, in units of the case's bytes: {memory}",
        f"(goal ≤ {MEMORY_GOAL:g}, and no growth with the side).",
        "",
    ]
    RESULT.write_text("\n".join(text), encoding="utf-8")
    sys.stdout.write("\n".join(text) + "\n")
    return 0 if own <= plain and gap < 1e-4 and max(peaks.values()) <= MEMORY_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

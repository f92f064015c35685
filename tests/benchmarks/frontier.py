"""What any image can reach at once: `python tests/benchmarks/frontier.py [--cases N] [--steps N] [--work DIR]`.

Not a method: F itself descends on the measures, once on brain and bone SSIM alone, from MRI with the CT's bone in it,
once with bone PSNR and seam held at their goals, from `refined`, and so again with the field's SCD or Qabf beside
them, to see what they cost. So it shows about where the edge lies that no method passes; a longer descent may find a
little more. The other rows are of the same slices by the same measures, of AANLIB MRI-CT (needs the pairs, see
CLINFUSE_TEST_DATA), kept in the work folder of evaluation.py. Writes tests/benchmarks/results/frontier.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from clinfuse_platform.variants import slab
from clinfuse_prep.store import CaseStore
from evaluation import RELEASED, RESULTS, WORK, everyone
from torch import Tensor

from clinfuse import RESEARCH_USE
from clinfuse.baselines import BASELINES
from clinfuse.case import Case, FloatArray
from clinfuse.evaluation.goals import GOALS
from clinfuse.method.seam_loss import gradient_magnitude
from clinfuse.method.ssim import ssim_map
from clinfuse.metrics import edges, field_metrics, roi_psnr, roi_ssim, seam_index
from clinfuse.metrics.seam import GREYS, border_band
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets

SLICES = 3
"""Of each patient, the middle ones: a step over all takes seconds."""
MARGIN = 8
"""Pixels around the head, more than the windows reach."""
FREE, HELD = (1, 0.02), (2, 0.004)
"""Times the steps, and the rate of Adam: what is held must not be left by large steps."""
HOLD = 3.0
"""Weight of what lies beyond either goal, as a share of it."""
WEIGHTS = (0.3, 1.0, 3.0)
"""Of 1 − SSIM in bone beside that in brain."""
FIELD_WEIGHTS = (0.2, 1.0)
"""Of a measure of the fusion field beside the clinical ones."""
COLUMNS = {
    ("ssim", "brain"): 3,
    ("ssim", "bone"): 3,
    ("psnr", "bone"): 1,
    ("seam", "borders"): 2,
    ("SCD", "whole"): 2,
    ("Qabf", "whole"): 3,
    ("SSIM_sum", "whole"): 3,
}
"""Digits after the point of each measure; units as of the goals."""
GOAL = {(goal.metric, goal.roi): goal for goal in GOALS}
PSNR_DB, SEAM_GREY = GOAL["psnr", "bone"].least, GOAL["seam", "borders"].most


def measures(case: Case, fused: FloatArray) -> list[float]:
    """One value for each of `COLUMNS`."""
    brain, bone = case.brain > 0, case.bone > 0
    pair = (case.anatomy, case.companion)
    return [
        roi_ssim(fused, pair[0], brain),
        roi_ssim(fused, pair[1], bone),
        roi_psnr(fused, pair[1], bone),
        seam_index(fused, pair, (brain, bone)),
        *field_metrics(fused, *pair, names=("SCD", "Qabf", "SSIM")).values(),
    ]


class Pair:
    """A patient's F (B, 1, H, W) to descend with where the head lies, and what its loss needs there."""

    def __init__(self, case: Case, start: FloatArray) -> None:
        self.start, self.box = start, _around(case.head | (case.brain > 0) | (case.bone > 0))
        self.voxels = case.shape[1] * case.shape[2]
        self.anatomy, self.companion = (self._cut(image) for image in (case.anatomy, case.companion))
        self.brain, self.bone = (self._cut(mask > 0) for mask in (case.brain, case.bone))
        self.band = self._cut(border_band(case.brain > 0, case.bone > 0))
        self.limit = torch.maximum(gradient_magnitude(self.anatomy), gradient_magnitude(self.companion))
        self.edges = [_edges(image) for image in (self.anatomy, self.companion)]
        self.fused = self._cut(start).requires_grad_(True)

    def _cut(self, volume: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(volume[self.box], dtype=np.float32))[:, None]

    def volume(self) -> FloatArray:
        """F (D, H, W), around the head as it began."""
        whole = self.start.copy()
        whole[self.box] = self.fused.detach().numpy()[:, 0]
        return whole

    def distance(self, weight: float) -> Tensor:
        """1 − SSIM in the brain and, weighed, in the bone."""
        return _mean(1 - ssim_map(self.fused, self.anatomy), self.brain) + weight * _mean(
            1 - ssim_map(self.fused, self.companion), self.bone
        )

    def seam(self) -> Tensor:
        """Grey."""
        return GREYS * _mean((gradient_magnitude(self.fused) - self.limit).clamp_min(0), self.band)

    def psnr(self) -> Tensor:
        """Of the bone, dB."""
        return -10 * torch.log10(_mean((self.fused - self.companion).square(), self.bone) + 1e-10)

    def scd(self) -> Tensor:
        """SCD, mean over slices; beyond the head all is black."""
        pairs = ((self.anatomy, self.fused - self.companion), (self.companion, self.fused - self.anatomy))
        return torch.stack([self._correlation(*pair) for pair in pairs]).sum(dim=0).mean()

    def qabf(self) -> Tensor:
        """Qabf, mean over slices; see clinfuse.metrics.edges, which has no gradient."""
        fused = _edges(self.fused)
        kept = [_preservation(source, fused) * source[0] for source in self.edges]
        there = [source[0] for source in self.edges]
        return (_total(kept[0] + kept[1]) / _total(there[0] + there[1])).mean()

    def _correlation(self, x: Tensor, y: Tensor) -> Tensor:
        covariance = _total(x * y) - _total(x) * _total(y) / self.voxels
        spread = [_total(z * z) - _total(z) ** 2 / self.voxels for z in (x, y)]
        return covariance / (spread[0] * spread[1] + 1e-9).sqrt()


def descended(
    cases: list[Case],
    starts: list[FloatArray],
    weight: float,
    steps: int,
    *,
    held: bool,
    beside: Callable[[Pair], Tensor] | None = None,
    share: float = 0.0,
) -> list[FloatArray]:
    """F (D, H, W) of every patient after that many steps of Adam, its rate falling as a cosine.

    Where bone PSNR and seam are held, their means over the patients are, as the goals are meant. `beside` is a measure
    that shall be large, too, and counts with its `share`.
    """
    pairs = [Pair(case, start) for case, start in zip(cases, starts, strict=True)]
    times, rate = HELD if held else FREE
    optimizer = torch.optim.Adam([pair.fused for pair in pairs], lr=rate)
    for step in range(times * steps):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / (times * steps))) / 2
        loss = torch.stack([pair.distance(weight) for pair in pairs]).mean()
        if held:
            seam = torch.stack([pair.seam() for pair in pairs]).mean()
            psnr = torch.stack([pair.psnr() for pair in pairs]).mean()
            loss = loss + HOLD * ((seam / SEAM_GREY - 1).clamp_min(0) + (1 - psnr / PSNR_DB).clamp_min(0))
        if beside is not None:
            loss = loss - share * torch.stack([beside(pair) for pair in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for pair in pairs:
                pair.fused.clamp_(0, 1)
    return [pair.volume() for pair in pairs]


def _around(head: np.ndarray) -> tuple[slice, ...]:
    """All slices, and the head's box in plane with room for the windows."""
    spans = [np.flatnonzero(head.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    return (slice(None), *(slice(max(span[0] - MARGIN, 0), span[-1] + 1 + MARGIN) for span in spans))


def _edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Strength (greys) and orientation as in clinfuse.metrics.edges, with a slope where an image is flat."""
    kernel = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([-1.0, 0.0, 1.0])
    both = torch.stack([-kernel, kernel.T])[:, None]
    sx, sy = torch.nn.functional.conv2d(GREYS * image, both, padding=1).split(1, dim=1)
    return (sx**2 + sy**2 + 1e-6).sqrt(), torch.atan(sy / torch.where(sx.abs() < 1e-3, 1e-3, sx))


def _preservation(source: tuple[Tensor, Tensor], fused: tuple[Tensor, Tensor]) -> Tensor:
    """Q of every pixel, see clinfuse.metrics.edges."""
    (g, alpha), (g_f, alpha_f) = source, fused
    ratio = torch.minimum(g, g_f) / torch.maximum(g, g_f)
    angle = 1 - (alpha - alpha_f).abs() / (math.pi / 2)
    strength = edges.GAMMA_G * torch.sigmoid(-edges.KAPPA_G * (ratio - edges.SIGMA_G))
    return strength * edges.GAMMA_A * torch.sigmoid(-edges.KAPPA_A * (angle - edges.SIGMA_A))


def _total(values: Tensor) -> Tensor:
    """Of every slice."""
    return values.sum(dim=(1, 2, 3))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over all slices together, as the measures take it."""
    return (values * mask).sum() / mask.sum()


def rows(cases: list[Case], steps: int) -> dict[str, list[float]]:
    """The mean over cases of every row's columns."""
    preset = load_presets()["balanced"]
    released = FusionPipeline.from_pretrained(RELEASED)
    pasted, refined = "MRI, CT in bone", "`refined`"
    found = {
        pasted: [np.where(case.bone > 0, case.companion, case.anatomy) for case in cases],
        "`hard_roi`": [BASELINES["hard_roi"](case, preset) for case in cases],
        refined: [BASELINES["refined"](case, preset) for case in cases],
        "the released model": [released(case, preset, align=False).fused for case in cases],
    }
    for held, start in ((False, pasted), (True, refined)):
        for weight in WEIGHTS:
            name = f"descent, bone × {weight:g}" + (", bone PSNR and seam held" if held else "")
            found[name] = descended(cases, found[start], weight, steps, held=held)
            sys.stderr.write(f"  {name}\n")
    for label, measure in (("SCD", Pair.scd), ("Qabf", Pair.qabf)):
        for share in FIELD_WEIGHTS:
            name = f"descent, bone × 1, bone PSNR and seam held, and {label} × {share:g}"
            found[name] = descended(cases, found[refined], 1.0, steps, held=True, beside=measure, share=share)
            sys.stderr.write(f"  {name}\n")
    return {
        name: [float(v) for v in np.mean([measures(*one) for one in zip(cases, images, strict=True)], axis=0)]
        for name, images in found.items()
    }


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _shown(values: list[float]) -> list[str]:
    return [f"{value:.{digits}f}" for value, digits in zip(values, COLUMNS.values(), strict=True)]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, help="only the first (all)")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--work", type=Path, default=WORK)
    arguments = parser.parse_args()
    store = CaseStore(everyone(arguments.work))
    cases = [slab(store.read(one), SLICES) for one in store.case_ids()[: arguments.cases]]
    table = rows(cases, arguments.steps)
    page = [
        "# What any image can reach at once",
        "",
        f"`python tests/benchmarks/frontier.py`: AANLIB MRI-CT, {len(cases)} patients, {SLICES} slices of each. F "
        "itself descends on 1 − SSIM to MRI in the brain and a weight times 1 − SSIM to CT in the bone, "
        f"{arguments.steps} steps of Adam; below, in twice as many, held at {PSNR_DB:g} dB in bone and a seam of "
        f"{SEAM_GREY:g} grey, and so again with SCD or Qabf to raise beside them.",
        "",
        _line("", (" ".join(column) for column in COLUMNS)),
        _line("---", ["---:"] * len(COLUMNS)),
        _line("*goal*", (GOAL[column].text for column in COLUMNS)),
        *(_line(name, _shown(values)) for name, values in table.items()),
        "",
        RESEARCH_USE,
    ]
    text = "\n".join(page) + "\n"
    (RESULTS / "frontier.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

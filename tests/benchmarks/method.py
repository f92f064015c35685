"""What the method costs beyond its networks: `python tests/benchmarks/method.py [--device cuda]`.

All ratios are of times measured in turn in one run, each the median over the rounds of that round's ratio:
sampler ÷ bare forwards, guided step ÷ forward and backward, guided teacher ÷ student, bfloat16 ÷ float32; then time,
peak memory and the share of the device's limits for a batch of slices and for a volume. Content: slices around the
lesion of a simulated patient, interpolated to twice as many voxels in plane. Networks: the first member of the released
model; a teacher's are of the same form, and what they cost does not depend on their weights, so the guided teacher is
timed with the student's. A 3D model is made untrained. Writes tests/benchmarks/results/method.md; fails if a ratio
misses its goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from method_device import Call, device_name, in_turn, limits, peak_bytes, work_of
from method_step import PRESET, SAMPLER_STEPS, Step, pipeline_3d, slab, volume

from clinfuse.case import Case
from clinfuse.method.precision import PRECISIONS
from clinfuse.pipeline import FusionPipeline

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "method.md"
TEACHER_STEPS, STUDENT_STEPS = 50, (4, 2, 1)
SAMPLER = f"unguided sampler, {SAMPLER_STEPS} steps ÷ as many bare forwards of ε_θ"
GUIDED = "guided step, exact ÷ forward and backward of ε_θ and both losses"
STUDENT = f"{TEACHER_STEPS}-step guided teacher ÷ 4-step student"
GOALS = {SAMPLER: (1.05, False), GUIDED: (1.10, False), STUDENT: (30.0, True)}
"""Goal of a ratio, and whether more is better."""
Ratios = dict[str, list[float]]


def divided(over: list[float], under: list[float]) -> list[float]:
    """The ratio of every round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def step_ratios(step: Step, repeats: int) -> Ratios:
    """Sampler and guided step beside their parts."""
    device = step.pipeline.device

    def times(one: Call) -> Call:
        return lambda: [one() for _ in range(SAMPLER_STEPS)]

    calls = {
        "sampler": step.sampler,
        "forwards": times(step.forward),
        "networks": times(step.network),
        "exact": step.guided("exact"),
        "cheap": step.guided("cheap"),
        "both": step.backward(at_once=False),
        "sum": step.backward(at_once=True),
    }
    took = in_turn(device, calls, repeats)
    return {
        SAMPLER: divided(took["sampler"], took["forwards"]),
        f"unguided sampler, {SAMPLER_STEPS} steps ÷ as many U-Nets alone": divided(
            took["sampler"], took["networks"]
        ),
        GUIDED: divided(took["exact"], took["both"]),
        "guided step, exact ÷ forward and one backward of the losses' sum": divided(
            took["exact"], took["sum"]
        ),
        "guided step, exact ÷ cheap gradient": divided(took["exact"], took["cheap"]),
        "guided step, exact ÷ bare forward": [
            SAMPLER_STEPS * ratio for ratio in divided(took["exact"], took["forwards"])
        ],
    }


def student_ratios(student: FusionPipeline, case: Case, repeats: int) -> Ratios:
    """A guided teacher beside students: whole calls, and what follows once the images are seen."""
    teacher = replace(student, kind="teacher")
    features = student.encode(case, 0)

    def call(pipeline: FusionPipeline, steps: int) -> Call:
        return lambda: pipeline(case, PRESET, steps=steps, align=False)

    def draw(pipeline: FusionPipeline, steps: int) -> Call:
        return lambda: pipeline.sample_member(case, 0, PRESET, steps=steps, features=features)

    both = {"teacher": teacher, **{f"{steps} steps": student for steps in STUDENT_STEPS}}
    counts = dict(zip(both, (TEACHER_STEPS, *STUDENT_STEPS), strict=True))
    calls = {
        f"{name}, {kind.__name__}": kind(both[name], counts[name]) for name in both for kind in (call, draw)
    }
    for pipeline in (teacher, student):
        call(pipeline, 1)()  # to warm up
    took = in_turn(student.device, calls, repeats, warm_up=False)
    named = {f"{steps} steps": STUDENT.replace("4-step", f"{steps}-step") for steps in STUDENT_STEPS}
    told = {named[name]: divided(took["teacher, call"], took[f"{name}, call"]) for name in named}
    return told | {
        f"{named[name]}, drawing alone": divided(took["teacher, draw"], took[f"{name}, draw"])
        for name in named
    }


def precision_ratios(
    pipelines: dict[str, FusionPipeline], case: Case, repeats: int
) -> tuple[Ratios, list[str]]:
    """bfloat16 beside float32: times, and what changes in F."""
    steps = {name: Step(pipeline, case) for name, pipeline in pipelines.items()}
    calls = {f"forward {name}": step.forward for name, step in steps.items()}
    calls |= {f"guided {name}": step.guided("exact") for name, step in steps.items()}
    took = in_turn(pipelines["float32"].device, calls, repeats)
    ratios = {
        f"bfloat16 ÷ float32, {what}": divided(took[f"{kind} bfloat16"], took[f"{kind} float32"])
        for kind, what in (("forward", "forward"), ("guided", "guided step, exact"))
    }
    lines = []
    for guided, what in ((False, "unguided"), (True, "guided by the lesion")):
        images = [pipelines[name](case, PRESET, guided=guided, align=False).fused for name in PRECISIONS]
        change = np.abs(images[0] - images[1])
        lines.append(f"| F, {what} | {change.max():.4f} | {change.mean():.6f} |")
    return ratios, lines


def resources(what: str, pipeline: FusionPipeline, case: Case, best: dict[str, float], repeats: int) -> str:
    """A row: time, peak memory, shares of the device's limits."""
    step, device, name = Step(pipeline, case), pipeline.device, pipeline.precision
    work = work_of(step.denoiser.unet, step.network)
    times = in_turn(device, {"network": step.network, "guided": step.guided("exact")}, repeats)
    network, guided = (statistics.median(times[kind]) for kind in ("network", "guided"))

    def draw(*, guided: bool) -> Call:
        return lambda: pipeline.sample_member(case, 0, PRESET, steps=2, guided=guided)

    peaks = [peak_bytes(device, draw(guided=on)) for on in (False, True)]
    held = " | ".join("–" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks)
    product, copy = work.flops / network / best[name], work.bytes / network / best["copy"]
    milliseconds = f"{1000 * network:.1f} | {1000 * guided:.1f}"
    return f"| {what} | {name} | {milliseconds} | {held} | {product:.0%} | {copy:.0%} |"


def met(name: str, value: float) -> bool:
    """Whether a ratio reaches its goal, if it has one."""
    goal, more = GOALS.get(name, (value, True))
    return value >= goal if more else value <= goal


def table(ratios: Ratios) -> list[str]:
    """Rows of ratios with their goals."""
    rows = ["| ratio | median | least to most | goal |", "| --- | ---: | ---: | ---: |"]
    for name, values in ratios.items():
        goal, more = GOALS.get(name, (None, True))
        told = "" if goal is None else f"{'≥' if more else '≤'} {goal:g}"
        digits = 1 if statistics.median(values) > 10 else 3
        middle, least, most = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
        rows.append(f"| {name} | {middle} | {least} to {most} | {told} |")
    return rows


def measure(arguments: argparse.Namespace, case: Case) -> tuple[Ratios, list[str]]:
    """All ratios, and the page."""
    device, repeats = torch.device(arguments.device), arguments.repeats
    released = FusionPipeline.from_pretrained(ROOT / "clinfuse" / "released", device=arguments.device)
    one = replace(released, members=released.members[:1])
    flat = {name: replace(one, precision=name) for name in PRECISIONS}
    deep = {name: replace(pipeline_3d(device), precision=name) for name in PRECISIONS}
    ratios = step_ratios(Step(one, case), repeats)
    ratios |= student_ratios(one, case, max(2, repeats // 3))
    rough, changes = precision_ratios(flat, case, repeats)
    best = limits(device, repeats)
    side = arguments.volume or (192 if device.type == "cuda" else 64)
    cases = {"slices": (flat, case), "volume": (deep, volume(side))}
    rows = [
        resources(f"{what}, {shown(own)}", pipelines[name], own, best, max(2, repeats // 3))
        for what, (pipelines, own) in cases.items()
        for name in PRECISIONS
    ]
    page = [
        "# The method beside its networks",
        "",
        f"`python tests/benchmarks/method.py --device {device.type}` on {device_name(device)}; {shown(case)} voxels of "
        f"a simulated patient with a lesion, the released model's first member, {repeats} rounds in turn. "
        "The guided teacher is timed with the student's networks: a teacher's are of the same form, and what they cost "
        "does not depend on their weights; both are whole calls but for alignment. Eq. 1 weighs ∇L_ROI and ∇U "
        "differently at every voxel, so a guided step takes one backward of each; one of their sum could not give it. "
        "A CPU without bfloat16 instructions is slower at bfloat16, not faster. The volume's networks are untrained.",
        "",
        *table(ratios | rough),
        "",
        "| bfloat16 − float32, this case | largest | mean |",
        "| --- | ---: | ---: |",
        *changes,
        "",
        "Limits measured here: matrix product "
        + ", ".join(f"{best[name] / 1e12:.3g} Tflop/s at {name}" for name in PRECISIONS)
        + f"; copy {best['copy'] / 1e9:.3g} GB/s. Shares are the U-Net's: its products' operations, and what its "
        "layers read and write if nothing is fused. Peak memory: MiB above what was held before, a draw of two steps.",
        "",
        "| what | precision | U-Net, ms | guided step, ms | peak, unguided | peak, guided | of product | of copy |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    return ratios, page


def shown(case: Case) -> str:
    """A case's size."""
    return "×".join(map(str, case.shape))


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--slices", type=int, default=4, help="2D batch (%(default)s)")
    parser.add_argument("--volume", type=int, metavar="SIDE", help="3D voxels a side (64; 192 on a GPU)")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "guidance is too strong")
    with tempfile.TemporaryDirectory() as name:
        case = slab(Path(name), arguments.slices)
    ratios, page = measure(arguments, case)
    RESULT.write_text("\n".join(page) + "\n", encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))
    return 0 if all(met(name, statistics.median(values)) for name, values in ratios.items()) else 1


if __name__ == "__main__":
    sys.exit(main())

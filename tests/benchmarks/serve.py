"""HTTP fuse of a 256² pair beside the same work done directly: `python tests/benchmarks/serve.py`.

One service on a local Ray: three student members of 4 steps, two aggregators. Requests and direct calls take turns
in one run, so that both see the same machine. Direct calls use all cores for one member after another; the service
runs the members side by side. First with a pair that nobody has seen, then with another preset for a pair that is
kept. Also start-up time and memory. Writes tests/benchmarks/results/serve.md; fails if a ratio of HTTP to direct
medians is above 1.15.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from PIL import Image

if TYPE_CHECKING:
    from clinfuse_serve.client import Client, FusedReply

    from clinfuse.pipeline import FusionPipeline

RESULT = Path(__file__).parent / "results" / "serve.md"
SIDE, GOAL, STEPS, MEMBERS = 256, 1.15, 4, 3
KINDS = ("new pair", "changed preset")
PRESETS = ("bone_tumor", "stroke")


def slices(folder: Path) -> dict[str, Path]:
    """A drawn head of 256 × 256 pixels: MR, CT and brain mask as PNG."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot((rows - SIDE / 2) / (0.44 * SIDE), (columns - SIDE / 2) / (0.36 * SIDE))
    noise = np.random.default_rng(0).normal(0, 6, radius.shape)
    brain = radius < 0.8
    mr = np.where(brain, 120 + 40 * np.sin(columns / 9.0) + noise, 10) + 60 * ((radius > 0.9) & (radius < 1))
    ct = np.where((radius > 0.82) & (radius < 0.92), 250, np.where(brain, 60 + noise, 4))
    paths = {}
    for role, image in {"anatomy": mr, "companion": ct, "brain": 255 * brain}.items():
        paths[role] = folder / f"{role}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[role])
    return paths


def untrained(folder: Path) -> Path:
    """A student of the size that `cpu-small` trains; its weights do not matter for time."""
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import build_denoiser, build_lesion_head, recipe

    config = recipe("cpu-small")
    members = [build_denoiser(config, member) for member in range(MEMBERS)]
    head = build_lesion_head(config)
    made = FusionPipeline(
        members=members, lesion_head=head, diffusion=config.diffusion, kind="student", student_steps=STEPS
    )
    return made.save_pretrained(folder / "model")


def in_turn(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, one after another in turns, the first two turns left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call(turn)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def direct_calls(pipeline: FusionPipeline, pair: dict[str, Path]) -> dict[str, Callable[[int], object]]:
    """What the service does, without the service."""
    from clinfuse_prep.geometry import to_source_grid
    from clinfuse_prep.prepare import prepare_pair

    from clinfuse.outputs import encode_fused

    def prepare() -> object:
        return prepare_pair(pair["anatomy"], pair["companion"], brain=pair["brain"])

    case = prepare_pair(pair["anatomy"], pair["companion"], brain=pair["brain"])
    seen = [pipeline.encode(case, member) for member in range(MEMBERS)]

    def whole(seed: int) -> object:
        prepare()
        return encode_fused(pipeline(case, seed=seed), case, to_source_grid, image_format="png")

    def changed(turn: int) -> object:
        drawn = [
            pipeline.sample_member(case, m, PRESETS[turn % 2], features=known) for m, known in enumerate(seen)
        ]
        return pipeline.combine(drawn, case, PRESETS[turn % 2], asked=MEMBERS, seed=0)

    return {"direct, new pair": whole, "direct, changed preset": changed}


def http_calls(client: Client, pair: dict[str, Path]) -> dict[str, Callable[[int], object]]:
    """The same two by the service; every new pair differs by bytes behind its images."""
    data = {role: path.read_bytes() for role, path in pair.items()}

    def new(turn: int) -> FusedReply:
        fresh = {role: image + turn.to_bytes(4, "big") for role, image in data.items()}
        masks = {"brain": fresh["brain"]}
        fused = client.fuse(fresh["anatomy"], fresh["companion"], masks=masks, seed=turn)
        assert fused.members_used == MEMBERS
        return fused

    kept = new(10_000).case
    for _ in range(6):  # until both aggregators and all members know the case
        client.describe(case=kept)
    return {
        "HTTP, new pair": new,
        "HTTP, changed preset": lambda turn: client.describe(case=kept, preset=PRESETS[turn % 2]),
    }


def memory_mb(root: psutil.Process) -> dict[str, float]:
    """Proportional set size in MB of Ray and the service's processes, by kind."""
    sizes: dict[str, float] = {"members": 0.0, "aggregators": 0.0, "Ray": 0.0}
    for process in root.children(recursive=True):
        try:
            title = process.cmdline()[0] if process.cmdline() else ""
            size = process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        kind = "members" if ":Member" in title else "aggregators" if ":Aggregator" in title else "Ray"
        sizes[kind] += size
    return sizes


def measure(model: Path, folder: Path, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times of all calls; start-up seconds and memory."""
    import torch
    from clinfuse_prep.session import session
    from clinfuse_serve.client import Client
    from clinfuse_serve.deploy import start

    from clinfuse.pipeline import FusionPipeline

    torch.set_num_threads(os.cpu_count() or 1)
    pair = slices(folder)
    begun = time.perf_counter()
    with session():
        connected = time.perf_counter()
        with start(model, port=0) as handle, Client(handle.url) as client:
            facts = {"Ray, s": connected - begun, "service, s": time.perf_counter() - connected}
            calls = direct_calls(FusionPipeline.from_pretrained(model), pair) | http_calls(client, pair)
            seconds = in_turn(calls, repeats)
            facts |= {f"{kind}, MB": size for kind, size in memory_mb(psutil.Process()).items()}
    return seconds, facts


def report(seconds: dict[str, list[float]], facts: dict[str, float], repeats: int) -> tuple[str, bool]:
    """Markdown, and whether the goal is met."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {kind: middle[f"HTTP, {kind}"] / middle[f"direct, {kind}"] for kind in KINDS}
    lines = [
        "# Serving a 256² pair",
        "",
        f"{MEMBERS} student members, {STEPS} steps, {os.cpu_count()} cores, {repeats} repeats in turn. New pair: two "
        "PNG and a brain mask are sent, prepared, fused, encoded and bundled. Changed preset: the case and what the "
        "members saw of it are kept.",
        "",
        "| call | p50, ms | p90, ms |",
        "| --- | ---: | ---: |",
    ]
    for name, values in seconds.items():
        lines.append(
            f"| {name} | {1000 * middle[name]:.0f} | {1000 * statistics.quantiles(values, n=10)[8]:.0f} |"
        )
    lines += ["", "| ratio of medians | value | goal |", "| --- | ---: | ---: |"]
    lines += [f"| HTTP ÷ direct, {kind} | {ratio:.2f} | ≤ {GOAL} |" for kind, ratio in ratios.items()]
    for way in ("HTTP", "direct"):
        gain = middle[f"{way}, changed preset"] / middle[f"{way}, new pair"]
        lines.append(f"| {way}: changed preset ÷ new pair | {gain:.2f} | |")
    lines += ["", "| start-up and memory (PSS) | |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.0f} |" for name, value in facts.items()]
    lines += [f"| all processes, MB | {sum(v for k, v in facts.items() if k.endswith('MB')):.0f} |"]
    return "\n".join(lines) + "\n", max(ratios.values()) <= GOAL


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="student with three members; default an untrained one")
    parser.add_argument("--repeats", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = arguments.model or untrained(Path(name))
        seconds, facts = measure(model, Path(name), arguments.repeats)
    text, met = report(seconds, facts, arguments.repeats)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

"""Data prep and reading, measured: `python tests/benchmarks/data.py [--cases N] [--size S]`.

Prep throughput by stage, random slices and patches from `ShardReader` against plain reads of
a memory-mapped array in the same run (goal: ≥ 0.5×), and peak memory of prep against volume size (goal: linear, at
most 6 times the case's bytes). Writes tests/benchmarks/results/data.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from clinfuse_prep.reader import ShardReader
from clinfuse_prep.sampling import Shares
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case

RESULT = Path(__file__).resolve().parent / "results" / "data.md"
KEYS = 6
Row = dict[str, object]


def phantom(size: int, seed: int, name: str) -> Case:
    """A textured head of size³ voxels of 2 mm."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1.2, 1.2, size, dtype=np.float32)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = rng.normal(0, 0.02, radius.shape).astype(np.float32)
    brain, bone = radius < 0.8, (radius >= 0.8) & (radius < 0.92)
    head = radius < 1
    return Case(
        case_id=name,
        anatomy=np.clip(np.where(brain, 0.5, 0.1) * head + noise * head, 0, 1).astype(np.float32),
        companion=np.clip(np.where(bone, 0.7, 0.07) * head + noise * head, 0, 1).astype(np.float32),
        brain=brain.astype(np.uint8),
        bone=bone.astype(np.uint8),
        lesion=(radius < 0.1).astype(np.uint8),
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        attrs={"split": "train", "patient": name},
    )


def seconds_of(*works: Callable[[int], object], repeats: int) -> list[float]:
    """Median seconds per call of each work, called in turns so that all meet the same load; one warm call before."""
    spent: list[list[float]] = [[] for _ in works]
    for index in range(repeats + 1):
        for work, times in zip(works, spent, strict=True):
            start = time.perf_counter()
            work(index)
            times.append(time.perf_counter() - start)
    return [median(times[1:]) for times in spent]


def reading(store: Path, cases: list[Case], folder: Path) -> list[Row]:
    """Crops per second of the reader and of a memory-mapped array that holds the same six images."""
    shape = (len(cases), KEYS, *cases[0].shape)
    mapped = np.lib.format.open_memmap(folder / "all.npy", mode="w+", dtype=np.float32, shape=shape)
    for index, case in enumerate(cases):
        images = (case.anatomy, case.companion, case.companion, case.brain, case.bone, case.lesion)
        mapped[index] = np.stack([image.astype(np.float32) for image in images])
    rows: list[Row] = []
    side = min(128, cases[0].shape[1])
    for name, dims, crop in (
        ("slices", 2, (side, side)),
        ("patches", 3, (32, 32, 32)),
        ("patches", 3, (64, 64, 64)),
    ):
        readers = [
            ShardReader(
                store, split="train", crop=crop, batch_size=8, spatial_dims=dims, shares=Shares(), cache=cache
            )
            for cache in (True, False)
        ]
        rng = np.random.default_rng(0)

        def plain(_: int, crop: tuple[int, ...] = crop, rng: np.random.Generator = rng) -> torch.Tensor:
            out = np.empty((8, KEYS, *crop), np.float32)
            for item in range(8):
                lows = [
                    int(rng.integers(0, n - c + 1)) for n, c in zip(shape[-len(crop) :], crop, strict=True)
                ]
                box = tuple(slice(low, low + c) for low, c in zip(lows, crop, strict=True))
                plane = (int(rng.integers(shape[2])),) if len(crop) == 2 else ()
                out[item] = mapped[(int(rng.integers(shape[0])), slice(None), *plane, *box)]
            return torch.from_numpy(out)

        memory, files, theirs = seconds_of(*readers, plain, repeats=150)
        mb = 8 * KEYS * int(np.prod(crop)) * 4 / 1e6
        rows.append(
            {
                "what": f"{name} {'×'.join(map(str, crop))}, batch 8",
                "memory map MB/s": mb / theirs,
                "ShardReader MB/s": mb / memory,
                "ratio": theirs / memory,
                "its cache in files MB/s": mb / files,
                "ratio ": theirs / files,
            }
        )
        for reader in readers:
            reader.close()
    return rows


def stages(folder: Path, size: int) -> list[Row]:
    """MB/s of each stage of one simulated case (input bytes: MR, CT and masks as float32)."""
    from clinfuse_prep.config import PrepConfig
    from clinfuse_prep.masks.bone import bone_from_ct
    from clinfuse_prep.masks.brain import brain_from_ct
    from clinfuse_prep.prepare import prepare_case
    from clinfuse_prep.read import read_image
    from clinfuse_prep.sources import SourceCase

    mr, ct = write_volumes(folder, size)
    mb = 2 * size**3 * 4 / 1e6
    source = SourceCase(patient="p", name="p", files={"anatomy": (mr,), "companion": (ct,)})

    def prepare(_: int) -> object:
        return prepare_case(source, PrepConfig(), case_id="c1", patient="p1", split="train")

    image = read_image(ct, role="companion")
    spacing = image.grid.spacing
    bone = bone_from_ct(image.volume, spacing, grey8=False)[0]
    made = prepare_case(source, PrepConfig(), case_id="c1", patient="p1", split="train")
    work: dict[str, Callable[[int], object]] = {
        "read both": lambda _: (read_image(mr, role="a"), read_image(ct, role="b")),
        "bone mask": lambda _: bone_from_ct(image.volume, spacing, grey8=False),
        "brain mask": lambda _: brain_from_ct(image.volume, bone, spacing, grey8=False),
        "prepare, all steps": prepare,
        "write": lambda _: CaseStore(folder / "w.zarr").write(made.case),
    }
    rows: list[Row] = []
    for name, call in work.items():
        (seconds,) = seconds_of(call, repeats=2)
        rows.append({"stage": name, "s": seconds, "MB/s": mb / seconds})
    return rows


def write_volumes(folder: Path, size: int) -> tuple[Path, Path]:
    """MR and CT of a phantom as NIfTI."""
    import nibabel as nib

    case = phantom(size, 0, "x")
    head = case.anatomy > 0
    ct = np.where(case.bone > 0, 1000, np.where(head, 35, -1000)).astype(np.float32)
    paths = folder / f"mr{size}.nii", folder / f"ct{size}.nii"
    for path, volume in zip(paths, (case.anatomy * 1000, ct), strict=True):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), case.affine), path)
    return paths


MEASURE = """
import sys
from pathlib import Path
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.prepare import prepare_case
from clinfuse_prep.sources import SourceCase
from clinfuse_prep.store import CaseStore
import clinfuse_prep.masks.auto, scipy.ndimage, skimage.filters

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

base = peak()
files = {"anatomy": (Path(sys.argv[1]),), "companion": (Path(sys.argv[2]),)}
source = SourceCase(patient="p", name="p", files=files)
made = prepare_case(source, PrepConfig(), case_id="c1", patient="p1", split="train")
CaseStore(sys.argv[3]).write(made.case)
sys.stdout.write(str(peak() - base))
"""


def memory(folder: Path, sizes: tuple[int, ...]) -> list[Row]:
    """Peak memory above the imports, against the prepared case's bytes (two float32 images, three masks)."""
    rows: list[Row] = []
    for size in sizes:
        mr, ct = write_volumes(folder, size)
        words = [sys.executable, "-c", MEASURE, str(mr), str(ct), str(folder / f"m{size}.zarr")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peak, case = int(done.stdout) * 1024, size**3 * 11
        rows.append({"size": f"{size}³", "case MB": case / 1e6, "peak MB": peak / 1e6, "ratio": peak / case})
    return rows


def markdown(title: str, rows: list[Row]) -> str:
    """Rows as a Markdown table under a heading."""
    names = list(rows[0])
    lines = [f"## {title}", "", "| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [phantom(arguments.size, seed, f"c{seed}") for seed in range(arguments.cases)]
        store = CaseStore(folder / "d.zarr")
        for case in cases:
            store.write(case)
        parts = [
            "# Data prep and reading\n\nMade by `python tests/benchmarks/data.py`; one run, one machine.\n",
            markdown("Random reads, warm (goal: ratio ≥ 0.5)", reading(folder / "d.zarr", cases, folder)),
            markdown("Prep by stage", stages(folder, arguments.size)),
            markdown(
                "Peak memory of prep (goal: ratio ≤ 6, linear)", memory(folder, (64, 96, 128, 192, 256))
            ),
        ]
    RESULT.write_text("\n".join(parts), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

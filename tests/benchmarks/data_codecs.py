"""Codec, inner chunk and codec pipeline of the dataset, measured: `python tests/benchmarks/data_codecs.py`.

One simulated MR is written, read whole, by random slice and by random patch, with each choice in turn. The package
zarrs (Rust) is measured beside zarr's own pipeline where it is installed. Writes results/data_codecs.md.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr
from clinfuse_prep.cohort.patient import simulate_patient
from data import Row, markdown, seconds_of
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

RESULT = Path(__file__).resolve().parent / "results" / "data_codecs.md"
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
CHUNKS = ((16, 64, 64), (32, 32, 32), (64, 64, 64))
PATCH = 32


def head_volume(spacing_mm: float = 1.5) -> NDArray[np.float32]:
    """The MR of one simulated patient, [0, 1], (D, H, W): what a codec will really meet."""
    volume = simulate_patient(0, 1, (spacing_mm,) * 3).mr.astype(np.float32)
    return np.clip(volume / np.percentile(volume, 99.8), 0, 1).astype(np.float32)


def codecs(volume: NDArray[np.float32], folder: Path) -> list[Row]:
    """Size and speed of one image with several codecs and inner chunks, by each pipeline that is installed."""
    rows: list[Row] = []
    for pipeline, place in PIPELINES.items():
        if importlib.util.find_spec(pipeline) is None:
            continue
        zarr.config.set({"codec_pipeline.path": place})
        for name in ("none", "lz4", "zstd"):
            for chunk in CHUNKS:
                path = folder / f"{pipeline}-{name}-{chunk[0]}-{chunk[1]}"
                rows.append({"pipeline": pipeline, **one_codec(volume, path, name, chunk)})
    zarr.config.reset()
    return rows


def one_codec(volume: NDArray[np.float32], path: Path, name: str, chunk: tuple[int, ...]) -> Row:
    """One line of the table: size against raw, MB/s of writing, and of reading volume, slice and patch of 32³."""
    blosc = None if name == "none" else BloscCodec(cname=name, clevel=3, shuffle="shuffle", typesize=4)
    inner = tuple(min(c, n) for c, n in zip(chunk, volume.shape, strict=True))
    shard = tuple(c * -(-n // c) for c, n in zip(inner, volume.shape, strict=True))

    def write(index: int) -> zarr.Array:
        array = zarr.create_array(
            f"{path}-{index}.zarr",
            shape=volume.shape,
            dtype="float32",
            chunks=inner,
            shards=shard,
            compressors=blosc,
        )
        array[...] = volume
        return array

    def corner(index: int) -> tuple[slice, ...]:
        lows = [index * 17 % (n - PATCH + 1) for n in volume.shape]
        return tuple(slice(low, low + PATCH) for low in lows)

    array = write(0)
    spent = seconds_of(
        lambda i: write(i + 1),
        lambda _: array[...],
        lambda i: array[(i * 17) % volume.shape[0]],
        lambda i: array[corner(i)],
        repeats=6,
    )
    size = sum(file.stat().st_size for file in Path(f"{path}-0.zarr").rglob("*") if file.is_file())
    amounts = (volume.nbytes, volume.nbytes, volume[0].nbytes, PATCH**3 * 4)
    speeds = [amount / 1e6 / seconds for amount, seconds in zip(amounts, spent, strict=True)]
    named = zip(("write", "volume", "slice", "patch"), speeds, strict=True)
    return {
        "codec": name,
        "chunk": "×".join(map(str, chunk)),
        "size": size / volume.nbytes,
        **{f"{what} MB/s": speed for what, speed in named},
    }


def main() -> None:
    """Measure all and write the table."""
    volume = head_volume()
    with tempfile.TemporaryDirectory() as folder:
        rows = codecs(volume, Path(folder))
    shape = "×".join(map(str, volume.shape))
    made_by = f"Made by `python tests/benchmarks/data_codecs.py` on a simulated MR of {shape}."
    text = f"# Codec, chunk and pipeline\n\n{made_by}\n\n"
    RESULT.write_text(text + markdown("One shard a volume, medians of 6", rows), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""One case as a Zarr v3 group: an image group per role with array `0`, sharded, with OME-Zarr metadata.

Blosc-zstd, chunks of 16×64×64 inside one shard per image: few files, the smallest of the codecs, and of the chunks
the best for slices. tests/benchmarks/results/data_codecs.md has the measured alternatives: lz4 reads a volume 1.7 times
as fast and is a fifth larger; the package zarrs about doubles every read, but a reader decodes each case only once, so
it is no dependency (to use it: ZARR_CODEC_PIPELINE__PATH=zarrs.ZarrsCodecPipeline).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.ome import multiscale

CHUNK = (16, 64, 64)
LARGEST_SHARD = (256, 512, 512)
OWN_KEYS = ("affine", "spacing", "modalities", "has_aligned", "summary", "note", "complete")


def write_case(url: str, case: Case, extra: Mapping[str, NDArray[Any]], dtype: str) -> None:
    """Write a case; the attribute `complete` comes last.

    Args:
        url: of the case's group, replaced if it exists.
        extra: further arrays (…, D, H, W) by name, such as chroma; floating ones are stored as `dtype`.
        dtype: of the images.
    """
    group = zarr.open_group(url, mode="w", zarr_format=3)
    images: dict[str, NDArray[Any]] = {"anatomy": case.anatomy, "companion": case.companion}
    if case.aligned_companion is not None:
        images["aligned_companion"] = case.aligned_companion
    for name, volume in images.items():
        scaling = case.attrs.get("scaling", {}).get("anatomy" if name == "anatomy" else "companion")
        known = {"scaling": scaling} if scaling else {}
        put_array(
            group, name, volume.astype(dtype), {"ome": multiscale(name, case.affine, case.spacing), **known}
        )
    for roi, mask in case.masks.items():
        provenance = case.attrs.get("provenance", {}).get(roi, "absent")
        put_array(
            group, roi, mask, {"ome": multiscale(roi, case.affine, case.spacing), "provenance": provenance}
        )
    for name, array in extra.items():
        put_array(group, name, array.astype(dtype) if array.dtype.kind == "f" else array, {})
    group.attrs.update(
        {
            **case.attrs,
            "affine": case.affine.tolist(),
            "spacing": list(case.spacing),
            "modalities": list(case.modalities),
            "has_aligned": case.aligned_companion is not None,
            "summary": manifest_row(case, dtype),
            "note": RESEARCH_USE,
            "complete": True,
        }
    )


def put_array(group: Any, name: str, volume: NDArray[Any], attributes: dict[str, Any]) -> None:
    """Write an array (…, D, H, W) as `<name>/0` of a group, one shard up to 256×512×512."""
    sub = group.create_group(name)
    if attributes:
        sub.attrs.update(attributes)
    lead = (1,) * (volume.ndim - 3)
    chunk = tuple(min(c, max(1, n)) for c, n in zip(CHUNK, volume.shape[-3:], strict=True))
    most = zip(volume.shape[-3:], chunk, LARGEST_SHARD, strict=True)
    shard = tuple(c * -(-min(n, m) // c) for n, c, m in most)
    names = ("c", "z", "y", "x")[-volume.ndim :]
    array = sub.create_array(
        "0",
        shape=volume.shape,
        dtype=volume.dtype,
        chunks=lead + chunk,
        shards=lead + shard,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=volume.dtype.itemsize),
        dimension_names=names,
        fill_value=0,
    )
    array[...] = volume

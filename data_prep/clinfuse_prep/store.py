"""The dataset on disk: one Zarr v3 store, a case in it only when complete, and a manifest of all cases.

Promises: `write` makes a case visible at once or not at all (local stores: written aside, then renamed; others:
the marker `complete` is written last). Writers of different cases may work at the same time, from any process.
The manifest is written by one process, at the end (`commit_manifest`). Equal input gives equal bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from clinfuse import RESEARCH_USE
from clinfuse.case import ROIS, Case
from clinfuse.errors import InputError
from clinfuse_prep.checks import volume_ml
from clinfuse_prep.ome import multiscale

CASES, MANIFEST, ASIDE = "cases", "manifest.parquet", ".aside"
CHUNK = (16, 64, 64)
LARGEST_SHARD = (256, 512, 512)
FORMAT = 1


class CaseStore:
    """A dataset `NAME.zarr`, local path or fsspec URL.

    Raises:
        InputError: a case or the store does not exist, or a case is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.url = str(path).rstrip("/")
        self.local = Path(self.url.removeprefix("file://")) if _is_local(self.url) else None
        self._fs, self._root = fsspec.core.url_to_fs(self.url)

    # -- reading -----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return bool(self._fs.exists(f"{self._root}/zarr.json"))

    def case_ids(self, split: str | None = None) -> list[str]:
        """Ids of the complete cases, sorted; of one split only if asked."""
        folder = f"{self._root}/{CASES}"
        if not self._fs.isdir(folder):
            return []
        names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(folder, detail=False)]
        found = sorted(name for name in names if not name.startswith(".") and name != "zarr.json")
        if self.local is None:
            found = [name for name in found if self.attributes(name).get("complete")]
        if split is None:
            return found
        return [name for name in found if self.attributes(name).get("split") == split]

    def attributes(self, case_id: str) -> dict[str, Any]:
        """The attributes of a case, {} while it is being written elsewhere."""
        try:
            data: dict[str, Any] = json.loads(self._fs.cat_file(f"{self._root}/{CASES}/{case_id}/zarr.json"))
        except (FileNotFoundError, ValueError):
            return {}
        return dict(data.get("attributes", {}))

    def read(self, case_id: str) -> Case:
        """A case, images as float32."""
        attrs = self.attributes(case_id)
        if not attrs.get("complete"):
            raise InputError(
                "the case is not in the dataset",
                expected=f"one of {len(self.case_ids())} cases",
                case=case_id,
                todo="clinfuse inspect lists them",
            )
        aligned = self.array(case_id, "aligned_companion") if attrs.get("has_aligned") else None
        images = {role: _float(self.array(case_id, role)) for role in ("anatomy", "companion")}
        masks = {roi: np.asarray(self.array(case_id, roi), dtype=np.uint8) for roi in ROIS}
        first, second = attrs["modalities"]
        return Case(
            case_id=case_id,
            **images,
            **masks,
            affine=np.array(attrs["affine"], dtype=np.float64),
            modalities=(first, second),
            aligned_companion=None if aligned is None else _float(aligned),
            attrs={key: value for key, value in attrs.items() if key not in _OWN},
        )

    def array(self, case_id: str, name: str) -> NDArray[Any]:
        """One array of a case, (D, H, W), as stored."""
        try:
            return np.asarray(self.open_array(case_id, name)[...])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"the array {name} cannot be read",
                expected="a complete case",
                found=f"a damaged or missing array ({type(error).__name__})",
                case=case_id,
                todo="prepare the case again (clinfuse prep --resume after deleting it)",
            ) from error

    def open_array(self, case_id: str, name: str) -> Any:
        """The Zarr array of a case, unread, for partial access."""
        group = zarr.open_group(f"{self.url}/{CASES}/{case_id}/{name}", mode="r", zarr_format=3)
        return group["0"]

    def chroma(self, case_id: str) -> NDArray[np.float32] | None:
        """Chrominance (2, D, H, W) in [-0.5, 0.5] of a pseudo-colour companion, or None."""
        if not self.attributes(case_id).get("colour"):
            return None
        return _float(self.array(case_id, "chroma"))

    # -- writing -----------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make an empty store if there is none."""
        if self.exists():
            return
        self._fs.makedirs(self._root, exist_ok=True)
        about = {"clinfuse_format": FORMAT, "note": RESEARCH_USE, "axes": "zyx of RAS+", "unit": "millimeter"}
        document = {"zarr_format": 3, "node_type": "group", "attributes": about}
        self._fs.pipe_file(f"{self._root}/zarr.json", json.dumps(document, indent=2).encode())
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        self._fs.makedirs(f"{self._root}/{CASES}", exist_ok=True)
        self._fs.pipe_file(f"{self._root}/{CASES}/zarr.json", json.dumps(group).encode())

    def write(self, case: Case, *, chroma: NDArray[np.float32] | None = None, dtype: str = "float32") -> None:
        """Store a case; one of the same id is replaced.

        Args:
            chroma: (2, D, H, W) of a pseudo-colour companion.
            dtype: "float32" or "float16" for the images.
        """
        self.create()
        if self.local is None:
            self._write_at(f"{self.url}/{CASES}/{case.case_id}", case, chroma, dtype)
            return
        aside = self.local / ASIDE / f"{case.case_id}-{uuid.uuid4().hex[:8]}"
        try:
            self._write_at(str(aside), case, chroma, dtype)
            self._publish(aside, self.local / CASES / case.case_id)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _publish(self, aside: Path, place: Path) -> None:
        if place.exists():
            old = aside.with_name(aside.name + "-old")
            os.replace(place, old)
            os.replace(aside, place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, place)

    def _write_at(self, url: str, case: Case, chroma: NDArray[np.float32] | None, dtype: str) -> None:
        group = zarr.open_group(url, mode="w", zarr_format=3)
        images: dict[str, NDArray[Any]] = {"anatomy": case.anatomy, "companion": case.companion}
        if case.aligned_companion is not None:
            images["aligned_companion"] = case.aligned_companion
        if chroma is not None:
            images["chroma"] = chroma
        for name, volume in images.items():
            attributes = {} if name == "chroma" else {"ome": multiscale(name, case.affine, case.spacing)}
            scaling = case.attrs.get("scaling", {}).get("anatomy" if name == "anatomy" else "companion")
            _put(group, name, volume.astype(dtype), attributes | ({"scaling": scaling} if scaling else {}))
        for roi, mask in case.masks.items():
            provenance = case.attrs.get("provenance", {}).get(roi, "absent")
            ome = {"ome": multiscale(roi, case.affine, case.spacing)}
            _put(group, roi, mask, {**ome, "provenance": provenance})
        group.attrs.update(
            {
                **case.attrs,
                "affine": case.affine.tolist(),
                "spacing": list(case.spacing),
                "modalities": list(case.modalities),
                "has_aligned": case.aligned_companion is not None,
                "summary": manifest_row(case),
                "note": RESEARCH_USE,
                "complete": True,
            }
        )

    def replace_masks(self, case_id: str, masks: Mapping[str, NDArray[np.uint8]], provenance: str) -> None:
        """Put other masks (D, H, W) in a case, all at once; the automatic ones stay as `<roi>_auto`."""
        from dataclasses import replace

        case, chroma = self.read(case_id), self.chroma(case_id)
        attrs = dict(case.attrs)
        attrs["provenance"] = {**attrs.get("provenance", {}), **dict.fromkeys(masks, provenance)}
        self.write(replace(case, **masks, attrs=attrs), chroma=chroma)  # type: ignore[arg-type]

    def clear_aside(self) -> None:
        """Remove what a killed run left unfinished. Call only when no other process writes."""
        if self.local is not None:
            shutil.rmtree(self.local / ASIDE, ignore_errors=True)

    # -- manifest ----------------------------------------------------------------------------------------------

    def manifest(self) -> pd.DataFrame:
        """A row per case (see `manifest_row`), also for cases that were left out (`state` "lost")."""
        path = f"{self._root}/{MANIFEST}"
        if not self._fs.exists(path):
            raise InputError(
                "the dataset has no manifest",
                expected=MANIFEST,
                todo="run clinfuse prep again with --resume; a killed run has none yet",
            )
        with self._fs.open(path, "rb") as stream:
            return pd.read_parquet(BytesIO(stream.read()))

    def commit_manifest(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the manifest in one go, sorted by case id."""
        self.create()
        table = pd.DataFrame(sorted((dict(row) for row in rows), key=lambda row: str(row["case_id"])))
        buffer = BytesIO()
        table.to_parquet(buffer, index=False)
        aside = f"{self._root}/.{MANIFEST}.part"
        self._fs.pipe_file(aside, buffer.getvalue())
        self._fs.mv(aside, f"{self._root}/{MANIFEST}")


_OWN = ("affine", "spacing", "modalities", "has_aligned", "summary", "note", "complete")


def manifest_row(case: Case) -> dict[str, Any]:
    """A case's row: ids, split, shape (D, H, W), spacing in mm, ROI volumes in mL, provenance and findings."""
    findings = case.attrs.get("findings", [])
    row: dict[str, Any] = {
        "case_id": case.case_id,
        "patient": case.attrs.get("patient", ""),
        "split": case.attrs.get("split", ""),
        "state": "ok",
        "modalities": "+".join(case.modalities),
        "simulated": bool(case.attrs.get("simulated", False)),
        "findings": json.dumps(findings),
        "worst": max((f["severity"] for f in findings), key=("info", "warning", "error").index, default=""),
    }
    for axis, size, step in zip("dhw", case.shape, case.spacing, strict=True):
        row[f"size_{axis}"], row[f"spacing_{axis}_mm"] = size, step
    for roi, mask in case.masks.items():
        row[f"{roi}_ml"] = volume_ml(mask, case.spacing)
        row[f"{roi}_provenance"] = case.attrs.get("provenance", {}).get(roi, "absent")
    return row


def _put(group: Any, name: str, volume: NDArray[Any], attributes: dict[str, Any]) -> None:
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


def _float(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")

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
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE
from clinfuse.case import ROIS, Case, MaskArray
from clinfuse.errors import InputError
from clinfuse_prep.case_group import OWN_KEYS, write_case

CASES, MANIFEST, ASIDE = "cases", "manifest.parquet", ".aside"
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

    def check(self) -> None:
        """Refuse a path without dataset.

        Raises:
            InputError: nothing was ever written here.
        """
        if not self.exists():
            raise InputError(
                "no dataset at this path",
                expected="a folder written by clinfuse prep",
                found="a folder of another kind" if self._fs.exists(self._root) else "nothing",
                todo="check the path; clinfuse prep makes a dataset",
            )

    def case_ids(self, split: str | None = None) -> list[str]:
        """Ids of the complete cases, sorted; of one split only if asked.

        Raises:
            InputError: no dataset at this path.
        """
        self.check()
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

    def row(self, case_id: str) -> dict[str, Any]:
        """The manifest's row of a complete case, made when its arrays were written (see `manifest_row`).

        Raises:
            InputError: the case's attributes cannot be read.
        """
        attrs = self.attributes(case_id)
        if not attrs:
            raise InputError(
                "the stored case is damaged",
                expected="its attributes in zarr.json",
                found="none that can be read",
                case=case_id,
                todo="run clinfuse prep again with --resume, which prepares it anew",
            )
        return dict(attrs["summary"])

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
        masks = {roi: np.asarray(self.array(case_id, roi), dtype=np.uint8) for roi in ROIS}
        chroma = self.array(case_id, "chroma") if attrs.get("colour") else None
        first, second = attrs["modalities"]
        return Case(
            case_id=case_id,
            anatomy=_float(self.array(case_id, "anatomy")),
            companion=_float(self.array(case_id, "companion")),
            brain=masks["brain"],
            bone=masks["bone"],
            lesion=masks["lesion"],
            affine=np.array(attrs["affine"], dtype=np.float64),
            modalities=(first, second),
            aligned_companion=None if aligned is None else _float(aligned),
            chroma=None if chroma is None else _float(chroma),
            attrs={key: value for key, value in attrs.items() if key not in OWN_KEYS},
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

    def write(
        self, case: Case, *, dtype: str = "float32", before: Mapping[str, MaskArray] | None = None
    ) -> None:
        """Store a case; one of the same id is replaced.

        Args:
            dtype: "float32" or "float16" for the images.
            before: masks by ROI that corrected ones replaced, kept as `<roi>_before`.
        """
        self.create()
        extra: dict[str, NDArray[Any]] = {f"{roi}_before": mask for roi, mask in (before or {}).items()}
        if case.chroma is not None:
            extra["chroma"] = case.chroma
        if self.local is None:
            write_case(f"{self.url}/{CASES}/{case.case_id}", case, extra, dtype)
            return
        aside = self.local / ASIDE / f"{case.case_id}-{uuid.uuid4().hex[:8]}"
        try:
            write_case(str(aside), case, extra, dtype)
            self._publish(aside, self.local / CASES / case.case_id)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def remove(self, case_id: str) -> None:
        """Take a case out, all at once, if it is there."""
        place = f"{self._root}/{CASES}/{case_id}"
        if not self._fs.exists(place):
            return
        if self.local is None:
            self._fs.rm_file(f"{place}/zarr.json")
            self._fs.rm(place, recursive=True)
            return
        aside = self.local / ASIDE / f"{case_id}-{uuid.uuid4().hex[:8]}-old"
        aside.parent.mkdir(exist_ok=True)
        os.replace(place, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def clear(self) -> None:
        """Remove a local dataset, if cases are in it; a folder of another kind stays."""
        if self.local is not None and self.exists() and self.case_ids():
            shutil.rmtree(self.local)

    def _publish(self, aside: Path, place: Path) -> None:
        if place.exists():
            old = aside.with_name(aside.name + "-old")
            os.replace(place, old)
            os.replace(aside, place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, place)

    def replace_masks(self, case_id: str, masks: Mapping[str, NDArray[np.uint8]], provenance: str) -> None:
        """Put other masks (D, H, W) in a case, all at once; what was there first stays as array `<roi>_before`."""
        case = self.read(case_id)
        known = case.attrs.get("masks_before", {})
        before = {roi: self.array(case_id, f"{roi}_before") for roi in known}
        old = dict(case.attrs.get("provenance", {}))
        before |= {roi: case.masks[roi] for roi in masks if roi not in before}
        attrs = {
            **case.attrs,
            "provenance": {**old, **dict.fromkeys(masks, provenance)},
            "masks_before": {**{roi: old.get(roi, "absent") for roi in masks}, **known},
        }
        dtype = str(self.open_array(case_id, "anatomy").dtype)
        arrays: dict[str, Any] = {roi: np.asarray(mask) for roi, mask in masks.items()}
        changed = replace(case, attrs=attrs, **arrays)
        self.write(changed, dtype=dtype, before=before)

    def clear_aside(self) -> None:
        """Remove what a killed run left unfinished. Call only when no other process writes."""
        if self.local is not None:
            shutil.rmtree(self.local / ASIDE, ignore_errors=True)

    def drop_empty_aside(self) -> None:
        """Remove the folder of unfinished cases if nothing is in it."""
        if self.local is not None:
            with suppress(OSError):
                (self.local / ASIDE).rmdir()

    # -- manifest ----------------------------------------------------------------------------------------------

    def manifest(self) -> pd.DataFrame:
        """A row per case (see `manifest_row`), also for cases that were left out (`state` "lost")."""
        return pd.read_parquet(BytesIO(self.manifest_bytes()))

    def manifest_bytes(self) -> bytes:
        """The manifest's file, Parquet.

        Raises:
            InputError: no dataset at this path, or no manifest in it.
        """
        self.check()
        path = f"{self._root}/{MANIFEST}"
        if not self._fs.exists(path):
            raise InputError(
                "the dataset has no manifest",
                expected=MANIFEST,
                found="a run that has not ended",
                todo="run clinfuse prep again with --resume; a killed run has none yet",
            )
        return bytes(self._fs.cat_file(path))

    def withdraw_manifest(self) -> None:
        """Remove the manifest while cases change: it would tell of cases that are no longer as it says."""
        if self._fs.exists(f"{self._root}/{MANIFEST}"):
            self._fs.rm_file(f"{self._root}/{MANIFEST}")

    def commit_manifest(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the manifest in one go, sorted by case id."""
        self.create()
        table = pd.DataFrame.from_records(sorted((dict(row) for row in rows), key=_case_of))
        buffer = BytesIO()
        table.to_parquet(buffer, index=False)
        aside = f"{self._root}/.{MANIFEST}.part"
        self._fs.pipe_file(aside, buffer.getvalue())
        self._fs.mv(aside, f"{self._root}/{MANIFEST}")


def _case_of(row: Mapping[str, Any]) -> str:
    return str(row["case_id"])


def _float(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")

"""The demo's test cases: fused by the ensemble into files, and which patient of the cohort each one is."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from clinfuse_prep.store import CaseStore
from numpy.typing import NDArray

from clinfuse.errors import InputError

PRESET = "balanced"


def fuse_test_cases(model: Path, store: Path, out: Path) -> dict[str, Any]:
    """Fuse every test case with all members and write fused, uncertainty, interval and sidecar to out/<case id>.

    Returns:
        preset, and of each case its id, lesion kind, seconds and file paths.
    """
    from clinfuse.outputs import write_fused
    from clinfuse.pipeline import FusionPipeline

    pipeline, cases = FusionPipeline.from_pretrained(model), CaseStore(store)
    done = []
    for case_id in cases.case_ids(split="test"):
        case = cases.read(case_id)
        start = time.monotonic()
        result = pipeline(case, PRESET)
        seconds = time.monotonic() - start
        files = write_fused(result, case, out / case_id)
        done.append({"case_id": case_id, "seconds": seconds, "files": {k: str(p) for k, p in files.items()}})
    return {"preset": PRESET, "members": len(pipeline.members), "cases": done, "result": str(out)}


def read_volume(path: str | Path) -> NDArray[np.float32]:
    """A NIfTI file as (D, H, W) float32 of its closest RAS+ grid."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.ascontiguousarray(image.get_fdata(dtype=np.float32).transpose(2, 1, 0))


def first_test_patient(store: Path) -> str:
    """The cohort's folder name of the first test case, from the link table beside the dataset.

    Raises:
        InputError: the dataset has no test case, or the link table does not know it.
    """
    case_ids = CaseStore(store).case_ids(split="test")
    links = store.with_name(f"{store.name}.key") / "links.csv"
    with links.open(newline="", encoding="utf-8") as stream:
        names = {row["case_id"]: row["source_case"] for row in csv.DictReader(stream)}
    if not case_ids or case_ids[0] not in names:
        raise InputError("the dataset has no test case", expected="at least one", found=str(len(case_ids)))
    return names[case_ids[0]]

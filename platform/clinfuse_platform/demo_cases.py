"""The demo's files: volumes read back on the RAS+ grid, and which patient of the cohort a test case is."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
from clinfuse_prep.store import CaseStore
from numpy.typing import NDArray

from clinfuse.errors import InputError


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

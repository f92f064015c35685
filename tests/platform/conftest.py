"""A tiny dataset and one Ray session for the platform's tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clinfuse.case import Case

SPLITS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "val", "f": "test", "g": "test"}


def shifted(case: Case, name: str, split: str) -> Case:
    """The tiny case as another patient: moved by some voxels, other texture, CT misregistered by a voxel."""
    rng = np.random.default_rng(ord(name))
    by = tuple(int(n) for n in rng.integers(-1, 2, 3))

    def move(array: np.ndarray) -> np.ndarray:
        return np.roll(array, by, axis=(0, 1, 2))

    def noisy(array: np.ndarray) -> np.ndarray:
        return np.clip(move(array) + rng.normal(0, 0.01, array.shape), 0, 1).astype(np.float32)

    aligned = noisy(case.companion)
    return replace(
        case,
        case_id=name * 6,
        anatomy=noisy(case.anatomy),
        companion=np.roll(aligned, 1, axis=2),
        aligned_companion=aligned,
        brain=move(case.brain),
        bone=move(case.bone),
        lesion=move(case.lesion),
        attrs={
            "patient": name * 6,
            "split": split,
            "simulated": True,
            "scaling": {"companion": {"unit": "HU", "low": -100, "high": 1700}},
        },
    )


def write_store(path: Path, case: Case) -> Path:
    """A dataset of seven patients: three to train, two to validate, two to test."""
    from clinfuse_prep.store import CaseStore, manifest_row

    store = CaseStore(path)
    cases = [shifted(case, name, split) for name, split in SPLITS.items()]
    for one in cases:
        store.write(one)
    store.commit_manifest([manifest_row(one) for one in cases])
    return path


@pytest.fixture
def tiny_store(tmp_path: Path, tiny_case: Case) -> Path:
    """Path of the dataset."""
    return write_store(tmp_path / "tiny.zarr", tiny_case)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray session for all tests that need it."""
    from clinfuse_platform.session import session

    with session(cpus=4):
        yield

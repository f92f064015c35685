"""A tiny dataset of seven patients, a model and runs with one for the platform's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clinfuse_platform.provenance import data_hash
from clinfuse_platform.runs import Run, create_run

from clinfuse.case import Case

SPLITS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "val", "f": "test", "g": "test"}
SHAPE, SPACING_MM = (8, 32, 28), (3.0, 1.5, 2.0)


def head(name: str, split: str) -> Case:
    """A head of ellipsoids with a lesion, 8×32×28 voxels; the CT lies one voxel off, the true place is known."""
    rng = np.random.default_rng(ord(name))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    size = rng.uniform(0.95, 1.05)
    radius = np.sqrt((z / 16) ** 2 + (y / 22) ** 2 + (x / 25) ** 2) / size
    brain, bone = radius < 0.75, (radius >= 0.82) & (radius < 0.95)
    at = rng.uniform(-4, 4, 2)
    lesion = ((z / 7) ** 2 + ((y - at[0]) / 6) ** 2 + ((x - at[1]) / 6) ** 2 < 1) & brain
    texture = rng.normal(0, 0.03, SHAPE)
    anatomy = np.where(brain, 0.55 + texture, 0.05) + 0.3 * lesion
    aligned = np.where(bone, 0.8 + texture, 0.0) + 0.08 * brain + 0.04 * (radius < 1.05)
    aligned = np.clip(aligned, 0, 1).astype(np.float32)
    scaling = {"companion": {"unit": "HU", "low": -100, "high": 1700}}
    return Case(
        case_id=name * 6,
        anatomy=np.clip(anatomy, 0, 1).astype(np.float32),
        companion=np.roll(aligned, 1, axis=2),
        aligned_companion=aligned,
        brain=brain.astype(np.uint8),
        bone=bone.astype(np.uint8),
        lesion=lesion.astype(np.uint8),
        affine=np.diag([*SPACING_MM[::-1], 1.0]),
        attrs={"patient": name * 6, "split": split, "simulated": True, "scaling": scaling},
    )


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of seven patients: three to train, two to validate, two to test."""
    from clinfuse_prep.manifest import manifest_row
    from clinfuse_prep.store import CaseStore

    path = tmp_path_factory.mktemp("data") / "tiny.zarr"
    store = CaseStore(path)
    cases = [head(name, split) for name, split in SPLITS.items()]
    for case in cases:
        store.write(case)
    store.commit_manifest([manifest_row(case) for case in cases])
    return path


@pytest.fixture(scope="session")
def made_run(tiny_store: Path) -> Callable[..., Run]:
    """Makes a run folder with a model of fresh weights: from its path and changes of the recipe cpu-debug."""
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import build_denoiser, build_lesion_head, recipe

    def make(path: Path, **changes: object) -> Run:
        config = recipe("cpu-debug", crop=(24, 24), **changes)
        facts = {"data": str(tiny_store), "data_hash": data_hash(tiny_store), "config": config.to_dict()}
        run = create_run(path.name, path.parent, {"verb": "train", **facts})
        FusionPipeline(
            members=[build_denoiser(config)],
            lesion_head=build_lesion_head(config),
            diffusion=config.diffusion,
        ).save_pretrained(path / "model")
        return run

    return make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with fresh weights."""
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import build_denoiser, build_lesion_head, recipe

    config = recipe("cpu-debug")
    pipeline = FusionPipeline(
        members=[build_denoiser(config)], lesion_head=build_lesion_head(config), diffusion=config.diffusion
    )
    return pipeline.save_pretrained(tmp_path_factory.mktemp("model") / "fresh")

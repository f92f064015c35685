"""Fixtures shared by all rooms: where the real images are, a Ray session, and one tiny anisotropic, oblique case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clinfuse.case import Case
from clinfuse.lean import use_lean_imports
from clinfuse.method.error_head import PARTS, ErrorHead
from clinfuse.method.perceptrons import Perceptrons

# Read by OpenMP when torch loads: threads that wait sleep instead of spinning, which on a busy machine costs ten
# times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # others use the other cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
use_lean_imports()  # as the command does: workers start in half the time
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real images, or skip."""
    root = Path(os.environ.get("CLINFUSE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("no real images here: set CLINFUSE_TEST_DATA to their folder")
    return root


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One local Ray session of four logical CPUs for a module's tests, closed before the next module's begin."""
    from clinfuse_prep.session import session

    with session(cpus=4):
        yield


@pytest.fixture
def error_head() -> Callable[..., ErrorHead]:
    """Makes error heads that have learned nothing: they expect an error of the same size everywhere, or, with a
    slope, more of it where the last features are high and the first ones low."""

    def part(count: int, size: float, slope: float) -> Perceptrons:
        return Perceptrons(
            mean=np.zeros(count, np.float32),
            scale=np.ones(count, np.float32),
            weights=(np.linspace(-slope, slope, count, dtype=np.float32)[None, None],),
            biases=(np.full((1, 1), np.log(size), np.float32),),
        )

    def make(size: float, slope: float = 0.0) -> ErrorHead:
        return ErrorHead(**{name: part(count, size, slope) for name, count in PARTS.items()}, ceiling=1.0)

    return make


def oblique_affine(spacing: tuple[float, float, float]) -> np.ndarray:
    """A (4, 4) RAS+ affine with spacing (D, H, W) mm, tilted by 8° about x and 5° about z."""
    a, b = np.deg2rad(8.0), np.deg2rad(5.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag(spacing[::-1])
    affine[:3, 3] = (-20.0, 15.0, 7.0)
    return affine


@pytest.fixture
def tiny_case() -> Case:
    """A head of ellipsoids: 12×32×28 voxels of 3.0×1.5×2.0 mm, skull shell, textured brain, one lesion."""
    shape, spacing = (12, 32, 28), (3.0, 1.5, 2.0)
    rng = np.random.default_rng(7)
    grid = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    radius = np.sqrt((grid[0] / 17) ** 2 + (grid[1] / 22) ** 2 + (grid[2] / 25) ** 2)
    brain = radius < 0.75
    bone = (radius >= 0.82) & (radius < 0.95)
    lesion = ((grid[0] / 7) ** 2 + ((grid[1] - 5) / 5) ** 2 + ((grid[2] + 4) / 6) ** 2 < 1) & brain
    texture = rng.normal(0, 0.03, shape)
    anatomy = (
        np.where(brain, 0.55 + texture, 0.05) + 0.3 * lesion + 0.25 * ((radius >= 0.95) & (radius < 1.05))
    )
    companion = np.where(bone, 0.8 + texture, 0.0) + 0.08 * brain + 0.04 * (radius < 1.05)
    return Case(
        case_id="tiny",
        anatomy=np.clip(anatomy, 0, 1).astype(np.float32),
        companion=np.clip(companion, 0, 1).astype(np.float32),
        brain=brain.astype(np.uint8),
        bone=bone.astype(np.uint8),
        lesion=lesion.astype(np.uint8),
        affine=oblique_affine(spacing),
        attrs={"patient": "tiny", "split": "train"},
    )

"""Lean processes: import MONAI and diffusers without the optional packages that they look for and we do not need.

MONAI imports all of itself and with it SciPy, pandas, scikit-learn, scikit-image, matplotlib, nibabel and more wherever
they are installed; diffusers imports torch's compiler and SciPy's statistics. For a worker that runs a network this is
more than half of the processor time that its start takes, and 0.31 of 0.61 GB (measured with torch 2.13, monai 1.6,
diffusers 0.42). So processes of our own, the command and its Ray workers, hide those packages while the two are being
imported, and only then. A program that imports clinfuse as a library is left alone: there MONAI may be wanted whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SWITCH = "CLINFUSE_LEAN"
HIDDEN = {
    "monai": (
        "cucim",
        "cupy",
        "cv2",
        "ignite",
        "itk",
        "matplotlib",
        "mlflow",
        "nibabel",
        "openslide",
        "optuna",
        "pandas",
        "pyarrow",
        "pydicom",
        "scipy",
        "SimpleITK",
        "skimage",
        "sklearn",
        "tensorboard",
        "tifffile",
        "torchvision",
        "transformers",
        "zarr",
    ),
    "diffusers": ("scipy", "torch._dynamo"),
}


def use_lean_imports() -> None:
    """Import lean from now on in this process, and in those it starts with its environment (Ray workers)."""
    os.environ.setdefault(SWITCH, "1")
    follow_switch()


def follow_switch() -> None:
    """Import lean in this process if the environment says so; called when `clinfuse.method` is imported."""
    if os.environ.get(SWITCH) == "1" and not any(isinstance(f, _LeanFinder) for f in sys.meta_path):
        sys.meta_path.insert(0, _LeanFinder())


@contextmanager
def hidden(names: Sequence[str]) -> Iterator[None]:
    """Packages not loaded yet cannot be imported inside; afterwards they can."""
    kept = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(kept))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in kept:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]


class _LeanFinder:
    """Finds only the two packages, as usual, and hides the optional ones while their own code runs."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in HIDDEN:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LeanLoader(spec.loader, HIDDEN[name])
        return spec


class _LeanLoader(Loader):
    def __init__(self, loader: Any, names: Sequence[str]) -> None:
        self._loader, self._names = loader, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        with hidden(self._names):
            self._loader.exec_module(module)

"""Lean processes: import MONAI, diffusers and nibabel without the optional packages they look for and we do not need.

MONAI imports all of itself and with it SciPy, pandas, scikit-learn, scikit-image, matplotlib, nibabel and more wherever
they are installed; diffusers imports torch's compiler and SciPy's statistics, nibabel pydicom. For a worker that runs a
network this is more than half of the processor time that its start takes, and 0.31 of 0.61 GB (measured with torch
2.13, monai 1.6, diffusers 0.42). So processes of our own, the command and its Ray workers, hide those packages while
the three are being imported, and only then. torch's compiler, which every optimizer imports to tell it to leave the
optimizer alone, and DistributedDataParallel to ask how it is to be compiled (2.2 s of processor time), is not loaded
before somebody compiles. A program that imports clinfuse as a library is left alone: there MONAI may be wanted whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SWITCH = "CLINFUSE_LEAN"
COMPILER = "torch._dynamo"
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
        "scipy.optimize",
        "scipy.signal",
        "scipy.sparse",
        "scipy.spatial",
        "SimpleITK",
        "skimage",
        "sklearn",
        "tensorboard",
        "tensorboardX",
        "tifffile",
        "torchvision",
        "transformers",
        "zarr",
    ),
    "diffusers": ("scipy", "torch._dynamo"),
    "nibabel": ("pydicom",),
}
ALWAYS_HIDDEN = {"scipy"}
"""Hidden even if loaded: diffusers, seeing SciPy, imports its statistics. All others stay if somebody loaded them."""


def use_lean_imports() -> None:
    """Import lean from now on in this process, and in those it starts with its environment (Ray workers)."""
    os.environ.setdefault(SWITCH, "1")
    follow_switch()


def follow_switch() -> None:
    """Import lean in this process if the environment says so; called when `clinfuse` is imported."""
    if os.environ.get(SWITCH) == "1" and not any(isinstance(f, _LeanFinder) for f in sys.meta_path):
        sys.meta_path.insert(0, _LeanFinder())


@contextmanager
def hidden(names: Sequence[str]) -> Iterator[None]:
    """Packages not loaded yet (and `ALWAYS_HIDDEN`) cannot be imported inside; afterwards all is as it was."""
    kept = [name for name in names if name not in sys.modules or name in ALWAYS_HIDDEN]
    loaded = {name: sys.modules[name] for name in kept if name in sys.modules}
    sys.modules.update(dict.fromkeys(kept))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in kept:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]
        sys.modules.update(loaded)


class _LeanFinder:
    """Finds only the three packages, as usual, and hides the optional ones while their own code runs; and the compiler,
    which sleeps."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in HIDDEN and name != COMPILER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            asleep = name == COMPILER
            spec.loader = _SleepingLoader(spec.loader) if asleep else _LeanLoader(spec.loader, HIDDEN[name])
        return spec


class _LeanLoader(Loader):
    def __init__(self, loader: Any, names: Sequence[str] = ()) -> None:
        self.real, self._names = loader, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.real.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        with hidden(self._names):
            self.real.exec_module(module)


class _SleepingLoader(_LeanLoader):
    def exec_module(self, module: ModuleType) -> None:
        del module.__path__  # so that importing a submodule wakes it, too
        module.__class__ = _Asleep


class _AsleepPart:
    """A submodule of the compiler that sleeps; what is asked of it beyond the answers that are known loads it."""

    def __init__(self, name: str, **answers: Any) -> None:
        self.__dict__.update(answers, _name=f"{COMPILER}.{name}")

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


class _Asleep(ModuleType):
    """torch._dynamo before anything is compiled; whatever is asked of it beyond these loads it in place."""

    utils = _AsleepPart("utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")
    trace_rules = _AsleepPart("trace_rules", clear_lru_cache=lambda: None)

    def disable(self, fn: Any = None, *_: Any, **__: Any) -> Any:
        """The function as it is: nothing is being compiled."""
        return fn if fn is not None else lambda decorated: decorated

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Nothing: no graph is being made."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec is None or not isinstance(spec.loader, _SleepingLoader):
            raise AttributeError(name)
        spec.loader = spec.loader.real
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__path__ = spec.submodule_search_locations or []
        spec.loader.exec_module(self)
        return getattr(self, name)

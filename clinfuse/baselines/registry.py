"""Where methods are found by name: built in, from installed packages, or a folder of fused images.

A package adds a method through the entry-point group `clinfuse.methods`. The entry is a function

    fuse(anatomy, companion, masks, spacing) -> F

of arrays (D, H, W) in [0, 1], a mapping of the masks brain, bone and lesion (uint8) and the spacing in mm
(D, H, W); it returns F, (D, H, W) in [0, 1]. A folder of results, or of a learned baseline, is named
`NAME=FOLDER` or `folder:FOLDER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np

from clinfuse.baselines.folder import folder_method
from clinfuse.baselines.guided import guided_filter
from clinfuse.baselines.laplacian import laplacian
from clinfuse.baselines.simple import anatomy_alone, companion_alone, hard_roi, maximum, mean, prior, refined
from clinfuse.baselines.wavelet import wavelet
from clinfuse.case import Case, FloatArray
from clinfuse.errors import InputError
from clinfuse.presets import Preset

Method = Callable[[Case, Preset], FloatArray]
ENTRY_POINT_GROUP = "clinfuse.methods"
FOLDER_PREFIX = "folder:"

BUILT_IN: dict[str, Method] = {
    "mean": mean,
    "max": maximum,
    "mri": anatomy_alone,
    "ct": companion_alone,
    "hard_roi": hard_roi,
    "prior": prior,
    "refined": refined,
    "laplacian": laplacian,
    "wavelet": wavelet,
    "guided_filter": guided_filter,
}
TRIVIAL = ("mean", "max", "mri", "ct", "hard_roi", "prior")


class MethodTable(Mapping[str, Method]):
    """All methods by name. Iterating lists the built-in and the installed ones; folders are found when named."""

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}

    def __getitem__(self, name: str) -> Method:
        if name in BUILT_IN:
            return BUILT_IN[name]
        if name in self._installed:
            return adapted(self._installed[name].load())
        folder = folder_of(name)
        if folder is None:
            raise KeyError(name)
        if (folder / "baseline.json").is_file():
            import torch

            from clinfuse.baselines.learned import learned_method, load_learned

            return learned_method(load_learned(folder, "cuda" if torch.cuda.is_available() else "cpu"))
        return folder_method(folder)

    def __contains__(self, name: object) -> bool:
        known = name in BUILT_IN or name in self._installed
        return known or (isinstance(name, str) and folder_of(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter([*BUILT_IN, *(name for name in self._installed if name not in BUILT_IN)])

    def __len__(self) -> int:
        return len(list(iter(self)))


BASELINES = MethodTable()


def folder_of(name: str) -> Path | None:
    """The folder meant by `folder:FOLDER` or `NAME=FOLDER`, or None if the name is of neither form."""
    if name.startswith(FOLDER_PREFIX):
        return Path(name.removeprefix(FOLDER_PREFIX))
    label, found, folder = name.partition("=")
    return Path(folder) if found and label and folder else None


def label_of(name: str) -> str:
    """What to call a method in a table: never a path."""
    folder = folder_of(name)
    if folder is None:
        return name
    return folder.name if name.startswith(FOLDER_PREFIX) else name.partition("=")[0]


def adapted(fuse: Callable[..., Any]) -> Method:
    """A plain `fuse(anatomy, companion, masks, spacing)` as a method of cases."""

    def method(case: Case, preset: Preset) -> FloatArray:
        fused = fuse(case.anatomy, case.companion, case.masks, case.spacing)
        if not isinstance(fused, np.ndarray):
            raise InputError(
                "the method returned no array",
                expected=f"a NumPy array {case.shape}",
                found=type(fused).__name__,
                case=case.case_id,
            )
        return np.asarray(fused, dtype=np.float32)

    return method

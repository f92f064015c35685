"""Where methods are found by name: the built-in baselines, installed packages, a folder of fused images."""

from __future__ import annotations

from collections.abc import Callable

from clinfuse.baselines.laplacian import laplacian
from clinfuse.baselines.simple import anatomy_alone, companion_alone, hard_roi, maximum, mean, prior
from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

Method = Callable[[Case, Preset], FloatArray]

BASELINES: dict[str, Method] = {
    "mean": mean,
    "max": maximum,
    "mri": anatomy_alone,
    "ct": companion_alone,
    "hard_roi": hard_roi,
    "prior": prior,
    "laplacian": laplacian,
}
TRIVIAL = ("mean", "max", "mri", "ct", "hard_roi", "prior")

"""Raw values to [0, 1] and back: HU window for CT, robust percentiles of the head for MR, SPECT and PET.

Example: the default CT window [-100, 1700] HU puts air at 0, fat (-90) at 0.006, brain (35) at 0.075, fresh blood
(65) at 0.092 and dense bone (1500) at 0.889.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError

Scaling = dict[str, Any]


def hu_scaling(window: tuple[float, float]) -> Scaling:
    """Scaling of a CT in Hounsfield units."""
    return {"unit": "HU", "low": float(window[0]), "high": float(window[1])}


def grey_scaling() -> Scaling:
    """Scaling of 8-bit greys of unknown window."""
    return {"unit": "grey", "low": 0.0, "high": 255.0}


def percentile_scaling(
    volume: NDArray[np.float32],
    head: NDArray[np.bool_],
    percentiles: tuple[float, float],
    case: str | None = None,
) -> Scaling:
    """Scaling by percentiles of the head's voxels.

    Args:
        volume: (D, H, W) raw values. head: (D, H, W) where the patient is.

    Raises:
        InputError: the head has no contrast.
    """
    values = volume[head] if head.any() else volume.ravel()
    low, high = (float(v) for v in np.percentile(values, percentiles))
    if not high > low:
        raise InputError(
            "the head in the image has no contrast",
            expected="different values inside the head",
            found=f"{low:g} … {high:g}",
            case=case,
            todo="re-export the image",
        )
    return {"unit": "a.u.", "low": low, "high": high}


def to_unit(volume: NDArray[np.float32], scaling: Scaling) -> NDArray[np.float32]:
    """(raw − low) / (high − low), clipped to [0, 1]; any shape."""
    low, high = np.float32(scaling["low"]), np.float32(scaling["high"])
    return np.clip((volume.astype(np.float32, copy=False) - low) / (high - low), 0, 1).astype(
        np.float32, copy=False
    )


def to_raw(volume: NDArray[np.float32], scaling: Scaling) -> NDArray[np.float32]:
    """Inverse of `to_unit` inside the window; any shape."""
    low, high = np.float32(scaling["low"]), np.float32(scaling["high"])
    return (volume * (high - low) + low).astype(np.float32, copy=False)

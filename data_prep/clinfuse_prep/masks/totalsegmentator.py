"""Brain and skull by TotalSegmentator, an optional package whose weights are downloaded once by its own command."""

from __future__ import annotations

import importlib.util
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import MissingPartError
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.morphology import Mask

TASKS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "CT": ("total", {"brain": ("brain",), "bone": ("skull",)}),
    "MR": ("total_mr", {"brain": ("brain",)}),
}
HOW = "pip install TotalSegmentator, then totalseg_download_weights -t total (and total_mr)"


def segment(volume: NDArray[np.float32], grid: Grid, modality: str) -> dict[str, Mask]:
    """ROI masks of one image.

    Args:
        volume: (D, H, W), HU for "CT", any unit for "MR". modality: "CT" or "MR".

    Returns:
        ROI → (D, H, W) bool, for the ROIs that the task knows.

    Raises:
        MissingPartError: package or weights are missing; says how to get them.

    Reference: Wasserthal et al., Radiology: AI 5(5), 2023.
    """
    if importlib.util.find_spec("totalsegmentator") is None:
        raise MissingPartError(f"this brain mask needs TotalSegmentator; to do: {HOW}")
    from totalsegmentator.python_api import totalsegmentator

    task, wanted = TASKS[modality]
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), grid.affine)
    names = sorted({name for group in wanted.values() for name in group})
    try:
        made = totalsegmentator(image, None, task=task, roi_subset=names, quiet=True, ml=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingPartError(
            f"TotalSegmentator could not run, most often for want of its weights; to do: {HOW}"
        ) from error
    return label_masks(made, task, wanted)


def label_masks(labels: Any, task: str, wanted: dict[str, tuple[str, ...]]) -> dict[str, Mask]:
    """Split a multi-label NIfTI image on the image's own grid into ROI masks (D, H, W)."""
    from totalsegmentator.map_to_binary import class_map

    numbers = {name: number for number, name in class_map[task].items()}
    array = np.asarray(labels.dataobj).transpose(2, 1, 0)
    return {roi: np.isin(array, [numbers[name] for name in names]) for roi, names in wanted.items()}

"""Brain by TotalSegmentator, an optional package whose weights are fetched once by its own command.

Left to itself the package fetches missing weights and reports each run to its makers; here neither happens: the
weights must be there, and its reporting is switched off before it runs.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import MissingPartError
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.morphology import Mask

TASKS = {"CT": "total", "MR": "total_mr"}
WEIGHTS = {"CT": (291, 292, 293, 294, 295, 298), "MR": (850, 851, 852)}
FETCH = {"CT": ("total",), "MR": ("total_mr", "total_fast_mr")}


def segment(volume: NDArray[np.float32], grid: Grid, modality: str, name: str = "brain") -> Mask:
    """The mask of one structure.

    Args:
        volume: (D, H, W), HU for "CT", any unit for "MR". modality: "CT" or "MR".
        name: a structure of the task `total` (CT) or `total_mr`.

    Returns:
        (D, H, W) bool.

    Raises:
        MissingPartError: package or weights are missing; says how to get them.

    Reference: Wasserthal et al., Radiology: AI 5(5), 2023; D'Antonoli et al., Radiology 314(2), 2025 (MR).
    """
    if importlib.util.find_spec("totalsegmentator") is None:
        raise MissingPartError(
            f"this brain mask needs TotalSegmentator; to do: pip install TotalSegmentator, then {how(modality)}"
        )
    try:
        from totalsegmentator import config, python_api
    except ImportError as error:
        raise MissingPartError(
            f"TotalSegmentator is incomplete (no module {error.name}); to do: install it again by pip"
        ) from error
    lacking = missing_weights(config.get_weights_dir(), modality)
    if lacking:
        raise MissingPartError(
            f"TotalSegmentator lacks {len(lacking)} of its weights for {modality}; to do: {how(modality)}"
        )
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), grid.affine)
    with redirect_stdout(sys.stderr):
        config.setup_totalseg()
        config.set_config_key("send_usage_stats", False)
        try:
            made = python_api.totalsegmentator(
                image, None, task=TASKS[modality], roi_subset=[name], ml=True, quiet=True, nr_thr_saving=1
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise MissingPartError(
                f"TotalSegmentator could not run ({type(error).__name__}); to do: {how(modality)}, or another --brain"
            ) from error
    return label_mask(made, python_api.class_map[TASKS[modality]], name)


def how(modality: str) -> str:
    """The package's own commands that fetch the weights of a modality."""
    return " and ".join(f"totalseg_download_weights -t {task}" for task in FETCH[modality])


def missing_weights(folder: Path, modality: str) -> list[int]:
    """Numbers of the modality's networks without a folder `Dataset<number>_…` among the weights."""
    held = {path.name.split("_")[0] for path in folder.glob("Dataset*")} if folder.is_dir() else set()
    return [number for number in WEIGHTS[modality] if f"Dataset{number}" not in held]


def label_mask(labels: Any, names: dict[int, str], name: str) -> Mask:
    """One structure (D, H, W) of a multi-label NIfTI image (X, Y, Z) on the image's own grid."""
    numbers = [number for number, label in names.items() if label == name]
    return np.isin(np.asarray(labels.dataobj).transpose(2, 1, 0), numbers)

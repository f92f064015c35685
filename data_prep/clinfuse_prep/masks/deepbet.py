"""Brain extraction by the optional package deepbet, whose network's weights lie in its wheel (MIT)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError, MissingPartError
from clinfuse_prep.masks.head import head_mr
from clinfuse_prep.masks.morphology import Mask, Spacing, closed, fill_planes


def deepbet_installed() -> bool:
    """Whether the package is there; it is not imported for the question."""
    return importlib.util.find_spec("deepbet") is not None


def brain_deepbet(volume: NDArray[np.float32], spacing_mm: Spacing, case: str | None = None) -> Mask:
    """Brain mask by a learned extractor trained on T1; it also serves T2, PD, FLAIR and thick slices.

    Args:
        volume: (D, H, W) MR on a RAS+ grid, any unit.

    Returns:
        (D, H, W) bool inside the head; small gaps closed slice by slice.

    Raises:
        MissingPartError: deepbet is not installed. InputError: it finds no head.

    Reference: Fisch et al., deepbet, Computers in Biology and Medicine 179, 2024.
    """
    extractor = _extractor()
    xyz = np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=np.float32)
    try:
        mask = extractor.postprocess(extractor.run_model(xyz) > 0.5)
    except (AssertionError, ValueError) as error:
        raise InputError(
            "no brain was found in the anatomy image",
            expected="an MR of a head",
            case=case,
            todo="check the image, or give a brain mask from a file",
        ) from error
    brain = np.asarray(mask > 0).transpose(2, 1, 0)
    return fill_planes(closed(brain, 5.0, spacing_mm)) & head_mr(volume, spacing_mm)


@lru_cache(maxsize=1)
def _extractor() -> Any:
    if not deepbet_installed():
        raise MissingPartError(
            "a learned brain mask needs the package deepbet; to do: pip install 'clinfuse[brain]', or use --brain auto"
        )
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)

"""Small pictures of what a trial made: an axial slice of the first cases, side by side, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from clinfuse_platform.evaluate_slices import shown_slice
from numpy.typing import NDArray
from PIL import Image

from clinfuse.case import Case
from clinfuse.report.figures import png_bytes
from clinfuse.report.planes import AXIAL, head_box

SHOWN_CASES = 2
HEIGHT_PX = 340
GAP_PX = 4


def cut_picture(case: Case, volume: NDArray[Any], index: int) -> Image.Image:
    """The axial slice (anterior up, patient's right on the left) cropped to the head, square millimetres.

    Args:
        case: gives the head's box and the spacing.
        volume: (D, H, W) in [0, 1].
        index: of the slice.
    """
    _, rows, columns = head_box(case)
    boxed = np.zeros_like(volume[index], dtype=np.float32)[rows, columns]
    boxed[:] = volume[index][rows, columns]
    picture = AXIAL.cut(boxed[None], 0)
    height_mm, width_mm = boxed.shape[0] * case.spacing[1], boxed.shape[1] * case.spacing[2]
    size = (max(round(HEIGHT_PX * width_mm / height_mm), 1), HEIGHT_PX)
    grey = np.clip(np.nan_to_num(picture) * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)


def strip(pictures: Sequence[Image.Image]) -> bytes:
    """Pictures side by side on black, as one PNG file."""
    width = sum(p.width for p in pictures) + GAP_PX * (len(pictures) - 1)
    sheet = Image.new("L", (max(width, 1), HEIGHT_PX))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP_PX
    return png_bytes(sheet)


def source_strips(cases: Sequence[Case]) -> dict[str, bytes]:
    """The first cases' anatomy and companion images, a strip each."""
    shown = [(case, shown_slice(case)) for case in cases[:SHOWN_CASES]]
    return {
        "anatomy": strip([cut_picture(case, case.anatomy, at) for case, at in shown]),
        "companion": strip([cut_picture(case, case.companion, at) for case, at in shown]),
    }

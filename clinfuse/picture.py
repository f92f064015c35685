"""One axial slice as PNG, as radiologists look at it, whatever the order of the voxels in the file it came from.

The convention is the one by which picture slices are read: written so and sent back, a slice lies as it did.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE
from clinfuse.errors import InputError

ORIENTATION = "axial, radiological: left of the picture is the patient's right, top is anterior"


def picture_png(
    array: NDArray[Any], affine: NDArray[np.float64], *, key: str, case_id: str, most: int = 255
) -> bytes:
    """One map of one slice as a PNG file.

    Args:
        array: (I, J, K) in [0, 1], in file order; or (I, J, K, 3) uint8, colours as they are.
        affine: (4, 4), voxel index → RAS+ mm; axes nearest to the patient's decide.
        key: "fused", "uncertainty", …; the file's description names it.
        case_id: pseudonym.
        most: the stored value of 1: 255 (8 bit) or 65535 (16 bit).

    Raises:
        InputError: it is not one axial slice.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from clinfuse.orientation import to_ras

    volume, _ = to_ras(array, affine)
    if volume.shape[0] != 1:
        raise InputError(
            "PNG can hold one slice only",
            expected="a case of one axial slice",
            found=f"{volume.shape[0]} axial slices",
            case=case_id,
            todo="ask for NIfTI",
        )
    picture = volume[0, ::-1, ::-1]
    if picture.ndim == 2:
        kind = np.uint8 if most == 255 else np.uint16
        picture = np.round(np.clip(picture, 0, 1) * most).astype(kind)
    about = PngInfo()
    about.add_text("Description", f"clinfuse {key} image. {RESEARCH_USE}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()

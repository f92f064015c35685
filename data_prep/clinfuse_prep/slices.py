"""Stacks of 8-bit picture slices (PNG, JPEG): numbered axial slices become one volume in RAS+ order.

Convention: radiological display, as the field's Harvard pairs use: the picture's left is the patient's right, its
top is anterior, numbers rise from inferior to superior.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clinfuse.colour import is_colour, split_colour
from clinfuse.errors import GeometryError, InputError
from clinfuse.orientation import to_ras
from clinfuse_prep.raw import RawImage, digest_of, from_source_array

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE = 8192
ASSUMED_SPACING = (
    "info",
    "the slices carry no spacing",
    "a spacing in the files",
    "{d:g} × {h:g} × {w:g} mm assumed (slice, row, column)",
    "give --slice-spacing if you know it; distances in mm depend on it",
)
DEEP = (
    "info",
    "the slices hold more than 8 bits",
    "greys from 0 to 255",
    "",
    "this range was brought to 0 to 255; give NIfTI or DICOM if the values are Hounsfield units",
)


def read_slices(
    paths: list[Path],
    *,
    role: str,
    case: str | None = None,
    spacing_mm: tuple[float, float, float] = (5.0, 1.0, 1.0),
    max_voxels: int = 2**28,
) -> RawImage:
    """Stack picture slices, in the order given, from inferior to superior.

    Args:
        paths: the slices; all of one size.
        spacing_mm: (D, H, W) mm assumed.

    Returns:
        The image: volume (D, H, W) float32 grey 0–255, `grey8` set; `chroma` if any slice is coloured.

    Raises:
        InputError: none given, unreadable, or too large. GeometryError: sizes differ.
    """
    if not paths:
        raise InputError(
            f"the {role} image is missing",
            expected="picture slices",
            found="none",
            case=case,
            todo="add the slices or leave the case out",
        )
    pictures = [_picture(path, role, case, max_voxels // len(paths)) for path in paths]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise GeometryError(
            f"the {role} slices have unequal shapes",
            expected="one size for all slices",
            found=", ".join(f"{h}×{w}" for h, w in sorted(sizes)),
            case=case,
            todo="export the slices again at one size",
        )
    grey, chroma, notes = _split(np.stack(pictures))
    affine = picture_affine(grey.shape[1], grey.shape[2], spacing_mm)
    image = from_source_array(
        grey.transpose(2, 1, 0), affine, kind="png", digest=digest_of(paths), grey8=True
    )
    d, h, w = spacing_mm
    note = (*ASSUMED_SPACING[:3], ASSUMED_SPACING[3].format(d=d, h=h, w=w), ASSUMED_SPACING[4])
    if chroma is not None:
        turned = [to_ras(part.transpose(2, 1, 0), affine)[0] for part in chroma]
        image = replace(image, chroma=np.stack(turned).astype(np.float32))
    return replace(image, notes=(note, *notes))


def _split(
    rgb: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, list[tuple[str, str, str, str, str]]]:
    """Grey (D, H, W) 0–255 and chrominance, if any, of (D, H, W, 3); deep greys by the range that they really use."""
    if rgb.dtype == np.uint8:
        return (*split_colour(rgb), []) if is_colour(rgb) else (rgb[..., 0].astype(np.float32), None, [])
    deep = rgb[..., 0]
    low, high = float(deep.min()), float(deep.max())
    note = (DEEP[0], DEEP[1], DEEP[2], f"values {low:g} … {high:g}", DEEP[4])
    return ((deep - low) / max(high - low, 1e-12) * 255).astype(np.float32), None, [note]


def picture_affine(height: int, width: int, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """(column, row, slice, 1) → RAS+ mm for the radiological display; the origin is the first slice's centre."""
    d, h, w = spacing_mm
    affine = np.diag([-w, -h, d, 1.0])
    affine[:3, 3] = ((width - 1) / 2 * w, (height - 1) / 2 * h, 0.0)
    return affine


def _picture(path: Path, role: str, case: str | None, max_pixels: int) -> NDArray[Any]:
    """(H, W, 3) of one file: uint8, or float64 as they are for greys of more bits."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > max_pixels or max(width, height) > LARGEST_SIDE:
                raise InputError(
                    f"a slice of the {role} image claims to be too large",
                    expected=f"at most {LARGEST_SIDE} pixels a side",
                    found=f"{width}×{height}",
                    case=case,
                    todo="check the file",
                )
            if picture.mode.startswith(("I", "F")):
                return np.repeat(np.asarray(picture, dtype=np.float64)[..., None], 3, axis=-1)
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except InputError:
        raise
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"a slice of the {role} image cannot be read",
            expected="a complete PNG or JPEG",
            found="a missing, truncated or damaged file" if not path.is_file() else "a damaged file",
            case=case,
            todo="copy or export the slice again",
        ) from error

"""Refuse what no metric can be computed on: other shapes, other spacings, NaN, soft masks, other ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import ConfigError, GeometryError, InputError

BoolArray = NDArray[np.bool_]


def as_image(name: str, image: NDArray[Any], *, case: str | None = None) -> NDArray[np.float32]:
    """The image as float32, checked.

    Args:
        name: what the image is, for the message.
        image: any shape, finite, values in [0, 1].

    Raises:
        InputError: not numeric, non-finite voxels, or values outside [0, 1].
    """
    array = np.asarray(image)
    if array.dtype.kind not in "fiub" or array.size == 0:
        raise InputError(
            f"{name} is not a real image",
            expected="at least one real number",
            found=f"shape {array.shape} of {array.dtype}",
            case=case,
        )
    array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            f"{name} has non-finite voxels",
            expected="finite values",
            found=f"{int((~np.isfinite(array)).sum())} NaN or infinite voxels of {array.size}",
            case=case,
            todo="repair the image; a failed fusion must be a failed row, not a number",
        )
    if low < 0 or high > 1:
        raise InputError(
            f"{name} is outside its range",
            expected="values in [0, 1]",
            found=f"[{low:g}, {high:g}]",
            case=case,
            todo="divide 8-bit greys by 255; scale HU with the window of the case",
        )
    return array


def as_mask(name: str, mask: NDArray[Any], *, case: str | None = None) -> BoolArray:
    """The mask as bool, checked to be binary.

    Raises:
        InputError: any value other than 0 and 1.
    """
    array = np.asarray(mask)
    if array.dtype == np.bool_:
        return array
    if array.dtype == np.uint8:
        binary = array.size == 0 or int(array.max()) <= 1
    else:
        binary = bool(((array == 0) | (array == 1)).all())
    if not binary:
        values = np.unique(array)
        shown = ", ".join(f"{v:g}" for v in values[:5]) + (", …" if len(values) > 5 else "")
        raise InputError(
            f"{name} is not a binary mask",
            expected="values 0 and 1",
            found=f"values {shown}",
            case=case,
            todo="threshold the mask, or pick one label of it",
        )
    return array.astype(np.bool_, copy=False) if array.dtype != np.uint8 else array.view(np.bool_)


def same_shape(*, case: str | None = None, **arrays: NDArray[Any]) -> tuple[int, ...]:
    """The shape that all arrays share.

    Raises:
        GeometryError: they differ; the message shows each array's name and shape.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1:
        first, *others = shapes.items()
        raise GeometryError(
            "the arrays do not lie on one grid",
            expected=f"the shape of {first[0]}, {first[1]}",
            found=", ".join(f"{name} {shape}" for name, shape in others),
            case=case,
            todo="resample them to the anatomy image's grid",
        )
    return next(iter(shapes.values()))


def as_spacing(spacing_mm: Sequence[float], ndim: int, *, case: str | None = None) -> tuple[float, ...]:
    """The spacing as a tuple of positive floats, one per axis of the arrays.

    Raises:
        GeometryError: another length than the arrays have axes, or a value that is not positive and finite.
    """
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != ndim or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise GeometryError(
            "the spacing does not fit the arrays",
            expected=f"{ndim} positive values in mm for arrays of {ndim} axes",
            found=f"{len(spacing)} values {spacing}",
            case=case,
        )
    return spacing


def positive(name: str, value: float) -> float:
    """A tolerance or width that must be positive and finite.

    Raises:
        ConfigError: it is not.
    """
    if not (np.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be positive", expected=f"{name} > 0", found=f"{name}={value}")
    return float(value)

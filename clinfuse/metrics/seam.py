"""Seam index: gradient at ROI borders that neither source has; what pasting leaves behind and ROI scores hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from clinfuse.metrics.checks import as_image, as_mask, same_shape
from clinfuse.metrics.surface import bounding_box

SIGMA_PX, REACH = 0.7, 4
GREYS = 255.0
IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)


def seam_index(fused: NDArray[Any], sources: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]]) -> float:
    """Mean over a 2-pixel band at ROI borders of F's gradient beyond the largest of its sources'.

    The band is, per mask and axial slice, one pixel inside and one outside the border (4-neighbourhood); bands
    of several masks are united. A border at the edge of the array is none.

    Args:
        fused: (D, H, W) or (H, W), values in [0, 1].
        sources: what F was made from, same shape and range; where a companion and its aligned form are both
            known, both, so that undoing a misregistration is no seam.
        masks: one or more binary masks of the same shape.

    Returns:
        8-bit greys per pixel, at least 0; NaN if no mask has a border.

    Raises:
        GeometryError: shapes differ. InputError: values outside [0, 1] or a soft mask.
    """
    images = [_stack(as_image("an image", image)) for image in (fused, *sources)]
    band = border_band(*masks)
    for image in images:
        same_shape(fused=images[0], source=image, mask=band)
    if not band.any():
        return float("nan")
    box = _grown_box(band)
    own, *others = (_gradient(image[box])[band[box]] for image in images)
    return float(np.maximum(own - np.maximum.reduce(others), 0).mean(dtype=np.float64))


def border_band(*masks: NDArray[Any]) -> NDArray[np.bool_]:
    """(D, H, W) band of one pixel to either side of each mask's in-plane border, united over the masks."""
    stacks = [_stack(as_mask("the mask", mask)) for mask in masks]
    band = np.zeros(stacks[0].shape, np.bool_)
    for mask in stacks:
        if mask.any():
            inner = binary_erosion(mask, IN_PLANE, border_value=1)
            band |= binary_dilation(mask, IN_PLANE) & ~inner
    return band


def _grown_box(band: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The band's box with room for the gradient's filter, so that cropping changes no value in it."""
    box = bounding_box(band)
    grown = [slice(max(s.start - REACH, 0), s.stop + REACH) for s in box[1:]]
    return (box[0], *grown)


def _stack(array: NDArray[Any]) -> NDArray[Any]:
    return array[None] if array.ndim == 2 else array


def _gradient(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gradient magnitude in plane, σ 0.7 pixel, 8-bit greys per pixel."""
    dy = _derivative(image, (0, 1, 0))
    dx = _derivative(image, (0, 0, 1))
    return np.asarray(GREYS * np.hypot(dy, dx), dtype=np.float32)


def _derivative(image: NDArray[np.float32], order: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.asarray(gaussian_filter(image, (0, SIGMA_PX, SIGMA_PX), order=order))

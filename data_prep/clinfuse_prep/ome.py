"""OME-Zarr 0.5 metadata, so that napari, Neuroglancer and Fiji open an image group of a store directly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def multiscale(
    name: str, affine: NDArray[np.float64], spacing_mm: tuple[float, float, float]
) -> dict[str, Any]:
    """The `ome` attribute of an image group with one resolution level, array `0`.

    Args:
        name: the image's role.
        affine: (x, y, z, 1) → RAS+ mm. OME-Zarr 0.5 knows scale and translation only; the full affine stays in
            the case's attributes.

    Reference: https://ngff.openmicroscopy.org/0.5/
    """
    scale = [float(s) for s in spacing_mm]
    shift = [float(v) for v in affine[:3, 3][::-1]]
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [
                            {"type": "scale", "scale": scale},
                            {"type": "translation", "translation": shift},
                        ],
                    }
                ],
            }
        ],
    }

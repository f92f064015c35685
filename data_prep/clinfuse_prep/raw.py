"""One image as read: voxels on the RAS+ grid, where they lay in the file, and how far their unit is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import InputError
from clinfuse.orientation import from_ras, to_ras
from clinfuse_prep.geometry import Grid

SIMULATED_MARK = "SIMULATED head; research use only"


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """A 3D image before scaling.

    Attributes:
        volume: (D, H, W) float32, raw values.
        grid: its RAS+ grid in mm.
        source_shape, source_affine: (I, J, K) and (i, j, k, 1) → RAS+ mm of the file's own voxel order.
        kind: "nifti", "png", "dicom", "itk" or "array".
        grey8: values are 8-bit display greys of unknown window, not a physical unit.
        chroma: (2, D, H, W) float32 in [-0.5, 0.5], Cb and Cr of a pseudo-colour image; None when grey.
        digest: SHA-256 of the files' bytes, hexadecimal.
        subject: digest of the patient's id where the file holds one, else empty; to compare, never to keep.
        simulated: the file says that no person was imaged (the embedded cohort's mark in its header).
        notes: what was noticed while reading, as (severity, problem, expected, found, todo).
    """

    volume: NDArray[np.float32]
    grid: Grid
    source_shape: tuple[int, int, int]
    source_affine: NDArray[np.float64]
    kind: str
    grey8: bool = False
    chroma: NDArray[np.float32] | None = None
    digest: str = ""
    subject: str = ""
    simulated: bool = False
    notes: tuple[tuple[str, str, str, str, str], ...] = field(default_factory=tuple)

    def source_geometry(self) -> dict[str, Any]:
        """JSON-able description that `to_source_grid` needs."""
        return {"shape": list(self.source_shape), "affine": self.source_affine.tolist(), "kind": self.kind}

    def to_source(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A (D, H, W) array of this grid in the file's voxel order."""
        return from_ras(volume, self.source_shape, self.source_affine)


def from_source_array(
    array: NDArray[Any], affine: NDArray[np.float64], *, kind: str, digest: str = "", grey8: bool = False
) -> RawImage:
    """A RawImage from an (I, J, K) array in source order with its affine."""
    volume, grid_affine = to_ras(array, affine)
    i, j, k = array.shape
    d, h, w = volume.shape
    return RawImage(
        volume=np.ascontiguousarray(volume, dtype=np.float32),
        grid=Grid((d, h, w), grid_affine),
        source_shape=(i, j, k),
        source_affine=np.asarray(affine, dtype=np.float64),
        kind=kind,
        grey8=grey8,
        digest=digest,
    )


def digest_of(paths: list[Path]) -> str:
    """SHA-256 over the bytes of the files in the given order, hexadecimal; read in pieces of 1 MiB."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                total.update(piece)
    return total.hexdigest()


def digest_of_text(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_voxels(volume: NDArray[np.float32], role: str, case: str | None = None) -> None:
    """Refuse what no later step can use: non-finite voxels and constant images.

    Raises:
        InputError: the volume (any shape) has NaN or infinite voxels, or one value only.
    """
    finite = np.isfinite(volume)
    if not finite.all():
        raise InputError(
            f"the {role} image has non-finite voxels",
            expected="finite values",
            found=f"{int(finite.size - finite.sum())} NaN or infinite of {finite.size} voxels",
            case=case,
            todo="repair or re-export the image",
        )
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        raise InputError(
            f"the {role} image is constant",
            expected="an image with contrast",
            found=f"the single value {low:g}",
            case=case,
            todo="re-export the image",
        )

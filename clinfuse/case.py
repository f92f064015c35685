"""A case: one subject's co-registered pair with masks and geometry, validated when it is made.

Axis legend: D inferior→superior, H posterior→anterior, W left→right, i.e. the RAS+ voxel grid stored as
(z, y, x). The affine maps the voxel index (x, y, z, 1) = (w, h, d, 1) to RAS+ millimetres, as NIfTI does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinfuse.errors import GeometryError, InputError

FloatArray = NDArray[np.float32]
MaskArray = NDArray[np.uint8]
ROIS = ("brain", "bone", "lesion")
HEAD_LEVEL = 0.03
"""An image above this is of the head, not of the air around it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One subject's anatomy image (MR), companion image (CT, SPECT or PET) and ROI masks on one grid.

    Attributes:
        case_id: pseudonym; the only name that may reach a log, a metric label or a response.
        anatomy: (D, H, W) float32 in [0, 1]; images given in another type are converted.
        companion: (D, H, W) float32 in [0, 1].
        brain, bone, lesion: (D, H, W) uint8 in {0, 1}; an absent lesion is all zeros.
        affine: (4, 4) float64, (x, y, z) voxel index → RAS+ mm.
        modalities: names of anatomy and companion, e.g. ("MR", "CT").
        aligned_companion: (D, H, W) float32 in [0, 1], the companion without its misregistration; known
            only for the embedded cohort, else None.
        chroma: (2, D, H, W) float32 in [-0.5, 0.5], Cb and Cr of a companion in pseudo-colour (SPECT, PET), whose
            luminance is `companion`; None if that is grey.
        attrs: JSON-able facts: scaling of both images, provenance of every mask, split, patient, simulated.

    Raises:
        GeometryError: shapes differ, are not 3D or empty, or a spacing is not positive.
        InputError: non-finite voxels, values outside [0, 1] or masks that are not binary.
    """

    case_id: str
    anatomy: FloatArray
    companion: FloatArray
    brain: MaskArray
    bone: MaskArray
    lesion: MaskArray
    affine: NDArray[np.float64]
    modalities: tuple[str, str] = ("MR", "CT")
    aligned_companion: FloatArray | None = None
    chroma: FloatArray | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self._named_arrays():
            if name not in ROIS:
                object.__setattr__(self, name, np.asarray(array, dtype=np.float32))
        shape = self.anatomy.shape
        for name, array in self._named_arrays():
            if array.ndim != 3 or array.shape != shape or 0 in shape:
                raise GeometryError(
                    f"{name} does not lie on the anatomy image's grid",
                    expected=f"shape {shape} with 3 axes, none of them empty",
                    found=f"shape {array.shape}",
                    case=self.case_id,
                    todo="resample it to the anatomy image (clinfuse prep does)",
                )
        if self.chroma is not None and self.chroma.shape != (2, *shape):
            raise GeometryError(
                "the chrominance does not lie on the anatomy image's grid",
                expected=f"shape {(2, *shape)}",
                found=f"shape {self.chroma.shape}",
                case=self.case_id,
            )
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all() or min(self.spacing) <= 0:
            raise GeometryError(
                "the affine is not usable",
                expected="a finite (4, 4) matrix with positive spacings",
                found=f"{self.affine.tolist()}",
                case=self.case_id,
                todo="repair the image's header",
            )
        for name, array in self._named_arrays():
            self._check_values(name, array)

    def _named_arrays(self) -> list[tuple[str, NDArray[Any]]]:
        pairs = [("anatomy", self.anatomy), ("companion", self.companion)]
        if self.aligned_companion is not None:
            pairs.append(("aligned_companion", self.aligned_companion))
        return [*pairs, *((roi, getattr(self, roi)) for roi in ROIS)]

    def _check_values(self, name: str, array: NDArray[Any]) -> None:
        if not np.isfinite(array).all():
            raise InputError(
                f"{name} has non-finite voxels",
                expected="finite values",
                found=f"{int((~np.isfinite(array)).sum())} NaN or infinite voxels",
                case=self.case_id,
                todo="repair the source image",
            )
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise InputError(
                f"{name} is outside its range",
                expected="values in [0, 1]",
                found=f"[{low:g}, {high:g}]",
                case=self.case_id,
                todo="scale it first (clinfuse prep does)",
            )
        if name in ROIS and not np.isin(array, (0, 1)).all():
            raise InputError(
                f"{name} is not a binary mask",
                expected="values 0 and 1",
                found="values " + ", ".join(f"{value:g}" for value in np.unique(array)[:5]),
                case=self.case_id,
                todo="threshold the mask",
            )

    @property
    def head(self) -> NDArray[np.bool_]:
        """(D, H, W): where one of the images is brighter than air (`HEAD_LEVEL`)."""
        return (self.anatomy > HEAD_LEVEL) | (self.companion > HEAD_LEVEL)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing (D, H, W) in mm."""
        w, h, d = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) in voxels."""
        d, h, w = self.anatomy.shape
        return d, h, w

    @property
    def masks(self) -> dict[str, MaskArray]:
        """The ROI masks by name."""
        return {roi: getattr(self, roi) for roi in ROIS}

    @property
    def nbytes(self) -> int:
        """Memory of all its arrays in bytes."""
        chroma = 0 if self.chroma is None else self.chroma.nbytes
        return chroma + sum(array.nbytes for _, array in self._named_arrays())

    @property
    def has_lesion(self) -> bool:
        """Whether a reference lesion S* is present."""
        return bool(self.lesion.any())

    @property
    def has_ct(self) -> bool:
        """Whether the companion is a CT: what is bright in the brain is blood or calcification there, uptake in SPECT
        and PET."""
        return self.modalities[1] == "CT"

    def slices(self, start: int, stop: int) -> Case:
        """The axial slab [start, stop) as a case of its own, with its origin moved accordingly."""
        if not 0 <= start < stop <= self.shape[0]:
            raise GeometryError(
                "the slab is not inside the volume",
                expected=f"0 <= start < stop <= {self.shape[0]}",
                found=f"start {start}, stop {stop}",
                case=self.case_id,
            )
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, 2] * start
        arrays: dict[str, Any] = {name: array[start:stop] for name, array in self._named_arrays()}
        chroma = None if self.chroma is None else self.chroma[:, start:stop]
        return replace(self, affine=affine, chroma=chroma, **arrays)

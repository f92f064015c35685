"""Fused output as files: BIDS-derivative names, the anatomy image's geometry, a JSON sidecar, no half files.

Volumes become gzipped NIfTI (float32) or DICOM Parametric Maps; single slices may become PNG (`clinfuse.picture`).
Everything is first made as bytes (`encode_fused`), so a service answers with what a folder would hold.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE, __version__
from clinfuse.case import Case, FloatArray
from clinfuse.colour import join_colour
from clinfuse.errors import InputError
from clinfuse.picture import ORIENTATION, picture_png

ImageFormat = Literal["nifti", "png", "dicom"]
Geometry = Callable[[FloatArray, Case], tuple[NDArray[Any], NDArray[np.float64]]]
MAPS = ("fused", "uncertainty", "interval")
UNITS = {
    "fused": "relative intensity, 0 to 1",
    "uncertainty": "0 (sure) to 1 (unsure)",
    "interval": "half-width in relative intensity, 0 to 1",
    "anatomy": "relative intensity, 0 to 1",
    "companion": "relative intensity, 0 to 1, resampled to the anatomy image's grid",
    "colour": "red, green, blue: F as luminance with the companion's own pseudo-colour, to look at",
}


class FusedMaps(Protocol):
    """What a result must hold to be written: maps (D, H, W) float32 in [0, 1] and JSON-able facts."""

    @property
    def fused(self) -> FloatArray:
        """F."""

    @property
    def uncertainty(self) -> FloatArray:
        """0 sure to 1 unsure."""

    @property
    def interval(self) -> FloatArray | None:
        """Half-width in image units, or None."""

    @property
    def info(self) -> dict[str, Any]:
        """The sidecar's facts."""


def case_grid(volume: FloatArray, case: Case) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume (D, H, W) in NIfTI's order (W, H, D) with the case's own affine: the default geometry."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0)), case.affine


def output_stem(case: Case, description: str) -> str:
    """BIDS-derivative name without extension: `sub-<id>_desc-<description>_<suffix>`.

    Labels may hold letters and digits only, so other signs of the pseudonym and of the modality are dropped.
    """
    label = re.sub(r"[^A-Za-z0-9]", "", case.case_id.removeprefix("sub-")) or "unnamed"
    suffix = re.sub(r"[^A-Za-z0-9]", "", case.modalities[0]) or "MR"
    return f"sub-{label}_desc-{description}_{suffix}"


def encode_fused(
    result: FusedMaps,
    case: Case,
    geometry: Geometry | None = None,
    *,
    image_format: ImageFormat = "nifti",
    inputs: bool = False,
    compress: bool = True,
) -> dict[str, tuple[str, bytes]]:
    """All files of one fused case, in memory.

    Args:
        result: maps (D, H, W) in [0, 1] and `info`.
        case: the case that was fused, aligned if it was aligned for that (`clinfuse.alignment.aligned`); gives names,
            geometry and, if asked, the inputs.
        geometry: maps a volume (D, H, W) to the array in the anatomy file's own voxel order and its (4, 4)
            affine in mm (`clinfuse_prep.to_source_grid`); default is the case's own RAS+ grid.
        image_format: "nifti", "dicom" (one Parametric Map per map), or "png" for a single axial slice, which lies as
            radiologists look at it whatever the geometry's voxel order: 8 bit for images, 16 for the other maps.
        inputs: also the two images as the model saw them.
        compress: NIfTI as .nii.gz (else .nii).

    Returns:
        key ("fused", "uncertainty", "interval", "anatomy", "companion", "colour", "sidecar") → (file name, bytes);
        "colour" where the companion came in pseudo-colour, as PNG or as RGB NIfTI (a Parametric Map has no colours).

    Raises:
        InputError: a map does not lie on the case's grid, PNG was asked for more than one axial slice, or DICOM for
            skewed axes.
    """
    volumes = {"fused": result.fused, "uncertainty": result.uncertainty}
    if result.interval is not None:
        volumes["interval"] = result.interval
    if inputs:
        volumes |= {"anatomy": case.anatomy, "companion": case.companion}
    placed = geometry or case_grid
    arrays = {}
    for key, volume in volumes.items():
        _check_grid(key, volume, case)
        arrays[key] = placed(np.asarray(volume, np.float32), case)
    if case.chroma is not None and image_format != "dicom":
        arrays["colour"] = _coloured(result.fused, case.chroma, case, placed)
    files: dict[str, tuple[str, bytes]] = {}
    for key, (array, affine) in arrays.items():
        stem = output_stem(case, key)
        if image_format == "png":
            data = picture_png(array, affine, key=key, case_id=case.case_id, most=_most(key))
            files[key] = (f"{stem}.png", data)
        elif image_format == "dicom":
            files[key] = (f"{stem}.dcm", _dicom(array, affine, case, key))
        else:
            data = nifti_bytes(array, affine, f"{key} image")
            files[key] = (
                (f"{stem}.nii.gz", gzip.compress(data, 1, mtime=0)) if compress else (f"{stem}.nii", data)
            )
    sidecar = _sidecar(result, case, {key: name for key, (name, _) in files.items()}, image_format)
    text = json.dumps(sidecar, indent=2, allow_nan=False, ensure_ascii=False)
    files["sidecar"] = (f"{output_stem(case, 'fused')}.json", text.encode())
    return files


def write_fused(
    result: FusedMaps,
    case: Case,
    out_dir: str | Path,
    geometry: Geometry | None = None,
    *,
    image_format: ImageFormat = "nifti",
) -> dict[str, Path]:
    """Write `encode_fused`'s files into a folder, each complete or not there; returns key → path."""
    return write_files(encode_fused(result, case, geometry, image_format=image_format), out_dir)


def write_files(files: Mapping[str, tuple[str, bytes]], out_dir: str | Path) -> dict[str, Path]:
    """Write named bytes into a folder (made if need be), each aside first, then renamed."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for key, (name, data) in files.items():
        aside = folder / f".{uuid4().hex}.part"
        try:
            aside.write_bytes(data)
            os.replace(aside, folder / name)
        finally:
            aside.unlink(missing_ok=True)
        paths[key] = folder / name
    return paths


def bundle(files: Mapping[str, tuple[str, bytes]]) -> bytes:
    """The same files as one zip, stored (images are compressed already), same bytes for same content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.values():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def nifti_bytes(array: NDArray[Any], affine: NDArray[np.float64], about: str = "image") -> bytes:
    """A NIfTI-1 file of an array in file order with its voxel → RAS+ mm affine: float32, or RGB of (I, J, K, 3).

    The affine is the sform, and the qform, too, unless it has shear, which no quaternion holds: then there is none.
    """
    import nibabel as nib

    rgb = np.dtype([(channel, np.uint8) for channel in "RGB"])
    values = array.astype(np.float32) if array.ndim == 3 else np.ascontiguousarray(array).view(rgb)[..., 0]
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-3):
        image.set_qform(None)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"clinfuse {about}. Research use only.".encode()
    return bytes(image.to_bytes())


def spacing_assumed(case: Case) -> bool:
    """Whether the anatomy image came as pictures, which carry no spacing: millimetres and millilitres depend on what
    was assumed."""
    return bool(case.attrs.get("source_geometry", {}).get("kind") == "png")


def jsonable(value: Any) -> Any:
    """The value in JSON's words: numpy values as numbers and lists, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _sidecar(result: FusedMaps, case: Case, names: dict[str, str], image_format: str) -> dict[str, Any]:
    meant = result.info.get("units", {})
    units = {key: meant.get(key) or UNITS[key] for key in names}
    if image_format == "png":
        units = {k: f"{v}; stored as 0 to {_most(k)}" for k, v in units.items()}
    facts = {
        "Description": "Fused image of two co-registered head images with its uncertainty",
        "IntendedUse": RESEARCH_USE,
        "Simulated": bool(case.attrs.get("simulated", False)),
        "Files": names,
        "GeneratedBy": {"Name": "clinfuse", "Version": __version__},
        "scaling": case.attrs.get("scaling"),
        "mask_provenance": case.attrs.get("provenance"),
        "findings": case.attrs.get("findings", []),
        "spacing_assumed": spacing_assumed(case),
    }
    if image_format == "png":
        facts["orientation"] = ORIENTATION
    if facts["Simulated"]:
        facts["SimulatedNote"] = "simulated CT: made from an MR template, not measured"
    return jsonable({**facts, **result.info, "units": units})


def _coloured(
    fused: FloatArray, chroma: FloatArray, case: Case, placed: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """F (D, H, W) with the companion's chrominance (2, D, H, W), (I, J, K, 3) in file order, and the affine."""
    colours = join_colour(fused, chroma).astype(np.float32)
    channels = [placed(np.ascontiguousarray(colours[..., number]), case) for number in range(3)]
    return np.stack([np.round(array) for array, _ in channels], axis=-1).astype(np.uint8), channels[0][1]


def _check_grid(key: str, volume: FloatArray, case: Case) -> None:
    if volume.shape != case.shape or not np.isfinite(volume).all():
        raise InputError(
            f"the {key} map cannot be written",
            expected=f"finite values on the case's grid {case.shape}",
            found=f"shape {volume.shape}" if volume.shape != case.shape else "non-finite values",
            case=case.case_id,
        )


def _dicom(array: NDArray[Any], affine: NDArray[np.float64], case: Case, key: str) -> bytes:
    from clinfuse.dicom_map import parametric_map

    return parametric_map(
        array,
        affine,
        key=key,
        case_id=case.case_id,
        explanation=UNITS[key],
        simulated=bool(case.attrs.get("simulated", False)),
    )


def _most(key: str) -> int:
    """What PNG stores for 1: images have 8 bits, the other maps 16."""
    return 65535 if key in MAPS[1:] else 255

"""DICOM series with an allow-list: geometry and pixels are read, every other tag stays in the files. Of the PatientID a
digest alone, in memory, so that images of two patients are told from each other.

Gantry tilt is undone by shifting each slice in its own plane to a common origin; slices at unequal distances are
interpolated to the smallest distance that is common among them. Both are reported.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.dicom_grid import Note, SliceHead, even, untilted
from clinfuse_prep.itk import LPS
from clinfuse_prep.raw import RawImage, digest_of, digest_of_text, from_source_array

GEOMETRY_TAGS = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SamplesPerPixel",
    "NumberOfFrames",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
)
PIXEL_TAGS = (
    *GEOMETRY_TAGS,
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelData",
)
SAME_PLANE_MM = 0.01


def read_series(
    paths: Sequence[Path], *, role: str, case: str | None = None, max_voxels: int = 2**28
) -> RawImage:
    """Read the largest series among DICOM files as one volume.

    Args:
        paths: files of one folder, in any order; other files are ignored.

    Returns:
        The image with volume (D, H, W) float32 (HU for CT), evenly spaced and without shear; notes tell of several
        series, gantry tilt, and unequal slice distances.

    Raises:
        InputError: no readable image slices, colour, multi-frame, or too many voxels.
        GeometryError: slices of unequal shape or orientation, or two in one place.
    """
    series, notes = series_of(paths, role, case)
    first = series[0]
    if first.rows * first.columns * len(series) > max_voxels:
        raise InputError(
            f"the {role} series is too large",
            expected=f"at most {max_voxels} voxels",
            found=f"{first.rows}×{first.columns}×{len(series)}",
            case=case,
            todo="crop the series",
        )
    slices = np.stack([_pixels(head, role, case) for head in series])
    padding = float(slices.min())
    slices, origin, tilt = untilted(slices, series, padding)
    slices, step, mixed = even(slices, np.array([head.height for head in series]))
    affine = np.eye(4)
    affine[:3, 0] = first.across * first.spacing[1]
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = first.normal * step
    affine[:3, 3] = origin
    digest = digest_of([head.path for head in series])
    image = from_source_array(slices.transpose(2, 1, 0), LPS @ affine, kind="dicom", digest=digest)
    return replace(image, subject=first.subject, notes=(*notes, *tilt, *mixed))


def series_of(
    paths: Sequence[Path], role: str, case: str | None = None
) -> tuple[list[SliceHead], list[Note]]:
    """The slices of the largest series among DICOM files, along its normal, and a note if there are several series.

    Raises:
        InputError: no readable image slices.
        GeometryError: slices of unequal shape, or two in one place.
    """
    heads = [head for path in sorted(paths) if (head := slice_head(path)) is not None]
    if not heads:
        raise InputError(
            f"the {role} image has no readable DICOM slices",
            expected="image slices with position and orientation",
            found=f"none in {len(paths)} files",
            case=case,
            todo="export the series again as single-frame DICOM, or convert it to NIfTI",
        )
    series, notes = _one_series(heads)
    return _ordered(series, role, case), notes


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and log lines while pydicom reads: they quote the values of damaged tags."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def slice_head(path: Path) -> SliceHead | None:
    """The geometry of a DICOM slice, or None for a file that is no image slice."""
    try:
        with quiet():
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(GEOMETRY_TAGS))
            turn = np.array([float(v) for v in data.ImageOrientationPatient])
            spacing = [float(v) for v in data.PixelSpacing]
            position = np.array([float(v) for v in data.ImagePositionPatient])
            rows, columns = int(data.Rows), int(data.Columns)
            series, modality = str(data.get("SeriesInstanceUID", "")), str(data.get("Modality", ""))
            patient = str(data.get("PatientID", "") or "").strip()
            plain = (
                int(data.get("SamplesPerPixel", 1) or 1) == 1 and int(data.get("NumberOfFrames", 1) or 1) == 1
            )
    except Exception:  # a damaged tag can raise anything that pydicom's converters meet
        return None
    lengths = [float(np.linalg.norm(turn[:3])), float(np.linalg.norm(turn[3:]))] if turn.size == 6 else [0.0]
    usable = min(lengths) > 0.5 and min(spacing) > 0 and min(rows, columns) > 0 and position.size == 3
    if not (plain and usable and len(spacing) == 2 and np.isfinite([*turn, *spacing, *position]).all()):
        return None
    return SliceHead(
        path=path,
        series=series,
        modality=modality,
        subject=digest_of_text(patient) if patient else "",
        rows=rows,
        columns=columns,
        spacing=(spacing[0], spacing[1]),
        across=turn[:3] / lengths[0],
        down=turn[3:] / lengths[1],
        position=position,
    )


def _one_series(heads: list[SliceHead]) -> tuple[list[SliceHead], list[Note]]:
    groups: dict[tuple[Any, ...], list[SliceHead]] = {}
    for head in heads:
        key = (head.series, tuple(np.round(np.concatenate([head.across, head.down]), 2)))
        groups.setdefault(key, []).append(head)
    best = max(groups.values(), key=len)
    if len(groups) == 1:
        return best, []
    others = ", ".join(str(len(group)) for group in groups.values() if group is not best)
    note = (
        "warning",
        "several series in one folder; the largest was taken",
        "one series",
        f"{len(groups)} with {len(best)} and {others} slices",
        "give each series its own folder",
    )
    return best, [note]


def _ordered(series: list[SliceHead], role: str, case: str | None) -> list[SliceHead]:
    shapes = {(head.rows, head.columns, *np.round(head.spacing, 4)) for head in series}
    if len(shapes) > 1:
        raise GeometryError(
            f"the {role} series has slices of unequal shapes",
            expected="one matrix and pixel spacing",
            found=f"{len(shapes)} different",
            case=case,
            todo="export the series again",
        )
    ordered = sorted(series, key=lambda head: head.height)
    gaps = np.diff([head.height for head in ordered])
    if gaps.size and gaps.min() < SAME_PLANE_MM:
        raise GeometryError(
            f"the {role} series has several slices in one place",
            expected="one slice per position",
            found=f"{int((gaps < SAME_PLANE_MM).sum())} repeated positions",
            case=case,
            todo="export one time point or reconstruction",
        )
    return ordered


def _pixels(head: SliceHead, role: str, case: str | None) -> NDArray[np.float32]:
    """(rows, columns) float32 with rescale slope and intercept applied."""
    try:
        with quiet():
            data = pydicom.dcmread(head.path, specific_tags=list(PIXEL_TAGS))
            values = np.asarray(data.pixel_array)
            slope = float(data.get("RescaleSlope", 1) or 1)
            intercept = float(data.get("RescaleIntercept", 0) or 0)
    except Exception as error:
        raise InputError(
            f"a DICOM slice of the {role} image cannot be decoded",
            expected="complete pixel data in a known transfer syntax, and numbers to scale them",
            found=type(error).__name__,
            case=case,
            todo="export the series again, uncompressed",
        ) from error
    if values.shape != (head.rows, head.columns):
        raise InputError(
            f"a DICOM slice of the {role} image is not a grey picture",
            expected=f"{head.rows}×{head.columns}",
            found=str(values.shape),
            case=case,
        )
    out = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if head.modality == "CT":
        out = np.maximum(out, np.float32(-1024))
    return out

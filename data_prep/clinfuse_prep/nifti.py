"""NIfTI without trust: the header is checked before anything is allocated, and only geometry is taken from it.

Nothing but shape, data type, affine and scaling is read, so no text field of a header can reach the store; of the
description only this is asked: is it, word for word, the mark of a simulated image?
Memory is bounded by the smaller of what the header claims and what the file really holds.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.raw import SIMULATED_MARK, RawImage, digest_of, from_source_array

PIECE = 1 << 20
LARGEST_OFFSET = 1 << 24
UNKNOWN_ORIENTATION = (
    "warning",
    "the image's orientation is not stated",
    "an sform or qform in the header",
    "neither",
    "check left and right on the contact sheet",
)


def read_nifti(path: Path, *, role: str, case: str | None = None, max_voxels: int = 2**28) -> RawImage:
    """Read a single-file NIfTI-1 or -2 (.nii, .nii.gz).

    Args:
        path: the file.
        role: what it is for ("anatomy", "companion", "brain mask"), for messages.
        max_voxels: refuse headers that claim more.

    Returns:
        The image with volume (D, H, W) float32 in file units (slope and intercept applied).

    Raises:
        InputError: missing, truncated, not NIfTI, 4D, colour, or larger than it may be.
        GeometryError: zero, negative or non-finite spacing, or a singular affine.
    """
    if not path.is_file():
        raise InputError(
            f"the {role} image is missing",
            expected="a NIfTI file",
            found="no file",
            case=case,
            todo="add the file or leave the case out",
        )
    try:
        with closing(_open(path)) as stream:
            block = stream.read(544)
            header, start = _parse(block, role, case)
            shape, dtype = _check(header, role, case, max_voxels)
            payload = _payload(stream, block, start, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the {role} image cannot be read to its end",
            expected="a complete NIfTI file",
            found="a truncated or damaged file",
            case=case,
            todo="copy or export the file again",
        ) from error
    values = np.frombuffer(payload, dtype=dtype, offset=start).reshape(shape, order="F").astype(np.float32)
    slope, inter = header.get_slope_inter()
    if slope not in (None, 1.0) or inter not in (None, 0.0):
        values = values * np.float32(1.0 if slope is None else slope) + np.float32(inter or 0.0)
    affine, stated = _affine(header, role, case)
    image = from_source_array(values, affine, kind="nifti", digest=digest_of([path]))
    marked = bytes(header["descrip"]).rstrip(b"\0") == SIMULATED_MARK.encode()
    image = replace(image, simulated=marked)
    return image if stated else replace(image, notes=(UNKNOWN_ORIENTATION,))


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        magic = stream.read(2)
    return cast("IO[bytes]", gzip.open(path, "rb")) if magic == b"\x1f\x8b" else path.open("rb")


def _payload(stream: IO[bytes], block: bytes, start: int, size: int) -> bytearray:
    """The first start + size bytes; one piece more is read so that gzip checks its checksum."""
    data = bytearray(block)
    while len(data) < start + size:
        piece = stream.read(min(PIECE, start + size - len(data)))
        if not piece:
            raise EOFError
        data += piece
    stream.read(PIECE)
    return data[: start + size]


def _parse(block: bytes, role: str, case: str | None) -> tuple[Any, int]:
    """The header and the offset of the first voxel."""
    if len(block) >= 348:
        size = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
        try:
            header = None
            if 348 in size:
                header = nib.Nifti1Header(block[:348], check=False)
            elif 540 in size and len(block) >= 540:
                header = nib.Nifti2Header(block[:540], check=False)
            if header is not None and bytes(header["magic"])[:3] in (b"n+1", b"n+2"):
                start = float(header["vox_offset"])
                if 348 <= start <= LARGEST_OFFSET:
                    return header, int(start)
        except (ValueError, OverflowError, HeaderDataError):
            pass
    raise InputError(
        f"the {role} image is not a NIfTI file",
        expected="a single-file NIfTI-1 or NIfTI-2 header",
        found="something else, or a damaged header",
        case=case,
        todo="convert it to .nii.gz",
    )


def _check(
    header: Any, role: str, case: str | None, max_voxels: int
) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape (I, J, K) and data type, if both are usable."""
    rank = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(0, min(rank, 7))]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if not 2 <= rank <= 7 or any(n < 1 for n in sizes):
        raise GeometryError(
            f"the {role} image has impossible dimensions",
            expected="two or three positive sizes",
            found=f"rank {rank}, sizes {sizes}",
            case=case,
            todo="repair the header",
        )
    if len(sizes) > 3:
        raise InputError(
            f"the {role} image is {len(sizes)}D",
            expected="a 3D volume",
            found=f"shape {tuple(sizes)}",
            case=case,
            todo="export one volume (one time point or channel)",
        )
    i, j, k = [*sizes, 1][:3]
    if i * j * k > max_voxels:
        raise InputError(
            f"the {role} image claims to be too large",
            expected=f"at most {max_voxels} voxels",
            found=f"{i}×{j}×{k}",
            case=case,
            todo="check the header, crop the image, or raise max_voxels",
        )
    try:
        dtype = header.get_data_dtype()
    except (KeyError, ValueError, HeaderDataError) as error:
        raise InputError(
            f"the {role} image has an unknown data type", expected="numbers", case=case, todo="convert it"
        ) from error
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        raise InputError(
            f"the {role} image has a data type that cannot be used",
            expected="integers or real numbers of at most 64 bits",
            found=str(dtype),
            case=case,
            todo="convert it to a grey image",
        )
    return (i, j, k), dtype


def _affine(header: Any, role: str, case: str | None) -> tuple[NDArray[np.float64], bool]:
    """The affine (i, j, k, 1) → RAS+ mm and whether the header states it (sform or qform)."""
    with np.errstate(invalid="ignore"):
        spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (ValueError, HeaderDataError) as error:
        raise GeometryError(
            f"the {role} image's orientation is damaged",
            expected="a valid sform or qform",
            case=case,
            todo="repair the header",
        ) from error
    usable = np.isfinite(affine).all() and np.isfinite(spacing).all() and (spacing > 0).all()
    if not usable or (np.linalg.norm(affine[:3, :3], axis=0) < 1e-3).any() or _flatness(affine) < 1e-3:
        raise GeometryError(
            f"the {role} image's spacing or affine is not usable",
            expected="positive spacing in mm and three independent axes",
            found=f"spacing {spacing.tolist()}",
            case=case,
            todo="repair the header",
        )
    return affine, bool(header["sform_code"] or header["qform_code"])


def _flatness(affine: NDArray[np.float64]) -> float:
    """Volume of the parallelepiped of the unit axes: 1 for orthogonal axes, 0 when they are dependent."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(abs(np.linalg.det(axes)))

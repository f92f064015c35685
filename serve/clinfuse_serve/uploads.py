"""Uploaded images: told apart by their first bytes, bounded before they are unpacked, gone after use.

The file name that a client sends is never used: not as a path, not in a log.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clinfuse.errors import InputError

ROLES = ("anatomy", "companion", "brain", "bone", "lesion")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GZIP_SIGNATURE = b"\x1f\x8b"
NIFTI_SIZES = {(348).to_bytes(4, "little"), (348).to_bytes(4, "big")}
NIFTI_SIZES |= {(540).to_bytes(4, "little"), (540).to_bytes(4, "big")}


def suffix_of(head: bytes, role: str) -> str:
    """The file ending that fits the first 24 bytes: .png, .nii.gz or .nii.

    Raises:
        InputError: empty, or neither PNG nor NIfTI.
    """
    if head.startswith(PNG_SIGNATURE):
        return ".png"
    if head.startswith(GZIP_SIGNATURE):
        return ".nii.gz"
    if head[:4] in NIFTI_SIZES:
        return ".nii"
    raise InputError(
        f"the {role} image is not of a kind that this service reads",
        expected="NIfTI (.nii, .nii.gz) or PNG",
        found="an empty file" if not head else "another kind of file",
        todo="convert it to NIfTI; `clinfuse fuse --url` does so for DICOM folders",
    )


def check_png_size(head: bytes, role: str, max_voxels: int) -> None:
    """Refuse a PNG whose header claims more pixels than the service takes (before it is unpacked)."""
    if len(head) < 24:
        raise InputError(f"the {role} image is damaged", expected="a complete PNG", found="a torn header")
    width, height = struct.unpack(">II", head[16:24])
    if not 0 < width * height <= max_voxels:
        raise InputError(
            f"the {role} image claims to be too large",
            expected=f"at most {max_voxels} pixels",
            found=f"{width}×{height}",
            todo="crop it",
        )


@contextmanager
def received(files: Mapping[str, BinaryIO], max_voxels: int) -> Iterator[dict[str, Path]]:
    """The uploads as files in a private temporary folder (mode 700) that is removed at the end.

    Args:
        files: role → open binary stream.
        max_voxels: bound for a picture's claimed size.

    Yields:
        role → path, named by role only.

    Raises:
        InputError: a stream is empty or neither PNG nor NIfTI, or a picture claims too many pixels.
    """
    with tempfile.TemporaryDirectory(prefix="clinfuse-") as folder:
        paths = {}
        for role, stream in files.items():
            stream.seek(0)
            head = stream.read(24)
            suffix = suffix_of(head, role)
            if suffix == ".png":
                check_png_size(head, role, max_voxels)
            stream.seek(0)
            paths[role] = Path(folder) / f"{role}{suffix}"
            with paths[role].open("xb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
        yield paths

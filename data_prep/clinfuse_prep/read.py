"""Read one image, whatever its format: picture slices, NIfTI, DICOM series, or what SimpleITK reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clinfuse.errors import InputError
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.raw import RawImage, digest_of
from clinfuse_prep.slice_numbers import slice_numbers
from clinfuse_prep.slices import SUFFIXES, read_slices

Files = Path | str | Sequence[Path | str] | RawImage


def expand(files: Files) -> list[Path]:
    """The files meant by a path or a list: a folder stands for its pictures (by slice number) or all its files.

    Raises:
        InputError: the pictures' names do not number them.
    """
    assert not isinstance(files, RawImage)
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(path) for path in files]
    if len(paths) == 1 and paths[0].is_dir():
        inside = sorted(path for path in paths[0].iterdir() if path.is_file())
        pictures = [path for path in inside if path.suffix.lower() in SUFFIXES]
        return [path for _, path in sorted(slice_numbers(pictures)[0].items())] if pictures else inside
    return paths


def read_image(
    files: Files, *, role: str, case: str | None = None, config: PrepConfig | None = None
) -> RawImage:
    """Read an image by what its files are.

    Args:
        files: one file, a folder, or a list (picture slices from inferior to superior, or a DICOM series).
        role: what it is for, for messages.

    Raises:
        InputError: missing, damaged, of a format that is not known here, or pictures without clear numbers.
    """
    if isinstance(files, RawImage):
        return files
    config = config or PrepConfig()
    paths = expand(files)
    kind = _kind(paths)
    if kind == "png":
        spacing = config.slice_spacing_mm
        return read_slices(paths, role=role, case=case, spacing_mm=spacing, max_voxels=config.max_voxels)
    if kind == "nifti":
        return read_nifti(paths[0], role=role, case=case, max_voxels=config.max_voxels)
    if not all(path.is_file() for path in paths):
        raise InputError(
            f"the {role} image is missing", expected="a file", found="no file", case=case, todo="add the file"
        )
    if kind == "itk":
        from clinfuse_prep.itk import read_itk

        return read_itk(paths[0], role=role, case=case, max_voxels=config.max_voxels)
    from clinfuse_prep.dicom import read_series

    return read_series(paths, role=role, case=case, max_voxels=config.max_voxels)


def image_digest(files: Path | str | Sequence[Path | str], *, role: str, case: str | None = None) -> str:
    """The `digest` that `read_image` would give, of the same files in the same order, without reading voxels.

    Raises:
        InputError, GeometryError: as `read_image`, as far as the files' headers tell. OSError: missing.
    """
    paths = expand(files)
    kind = _kind(paths)
    if kind == "itk":
        from clinfuse_prep.itk import itk_files

        paths = itk_files(paths[0], role, case)
    elif kind == "dicom":
        from clinfuse_prep.dicom import series_of

        paths = [head.path for head in series_of(paths, role, case)[0]]
    return digest_of(paths)


def _kind(paths: Sequence[Path]) -> str:
    """What reads these files, as in `RawImage.kind`."""
    name = paths[0].name.lower() if paths else ""
    if not paths or name.endswith(SUFFIXES):
        return "png"
    if len(paths) == 1 and name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if len(paths) == 1 and name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return "itk"
    return "dicom"

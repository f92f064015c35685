"""SimpleITK at arm's length: raw formats it reads (NRRD, MHA), and the way between its images and our grids.

Legend: ITK keeps LPS+ millimetres; ours are RAS+, so x and y change sign.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.geometry import Grid
from clinfuse_prep.raw import RawImage, digest_of, from_source_array
from clinfuse_prep.shear import MOST_SHEAR_MM, shear_mm, squared

DETACHED = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+)$", re.IGNORECASE | re.MULTILINE)
HEADER_BYTES = 1 << 16
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings name files
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums over threads differ; cases run side by side


def read_itk(path: Path, *, role: str, case: str | None = None, max_voxels: int = 2**28) -> RawImage:
    """Read an NRRD, NHDR, MHA or MHD volume; the header is checked before voxels are read.

    Raises:
        InputError: damaged, not 3D, coloured or too large, or its voxels lie in a file elsewhere.
        GeometryError: unusable spacing.
    """
    files = itk_files(path, role, case)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        check_itk(size, reader.GetNumberOfComponents(), role, case, max_voxels)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"the {role} image cannot be read",
            expected="a complete NRRD or MetaImage volume",
            found="a truncated or damaged file",
            case=case,
            todo="export the file again",
        ) from error
    return from_itk(image, kind="itk", role=role, case=case, digest=digest_of(files))


def itk_files(path: Path, role: str, case: str | None = None) -> list[Path]:
    """The file, and the one beside it that holds its voxels, if any.

    Raises:
        InputError: its header points elsewhere.
    """
    with path.open("rb") as stream:
        header = re.split(r"\r?\n\r?\n", stream.read(HEADER_BYTES).decode("latin-1"))[0]
    found = DETACHED.search(header)
    name = found.group(1).strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    beside = path.parent / name
    if Path(name).name != name or not beside.is_file():
        raise InputError(
            f"the {role} image's header does not lead to its voxels",
            expected="voxels in the same file, or in one file beside it",
            found="no such file, several files, or a path to another place",
            case=case,
            todo="convert it to one .nii.gz, .nrrd or .mha file",
        )
    return [path, beside]


def check_itk(size: tuple[int, ...], components: int, role: str, case: str | None, max_voxels: int) -> None:
    """Refuse sizes that cannot be used.

    Raises:
        InputError: not 3D, more than one component, or too many voxels.
    """
    sizes = [int(n) for n in size]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or components != 1:
        raise InputError(
            f"the {role} image is not a grey 3D volume",
            expected="three axes and one component",
            found=f"size {tuple(sizes)} with {components} components",
            case=case,
            todo="export one grey volume",
        )
    if sizes[0] * sizes[1] * sizes[2] > max_voxels:
        raise InputError(
            f"the {role} image claims to be too large",
            expected=f"at most {max_voxels} voxels",
            found="×".join(map(str, sizes)),
            case=case,
            todo="check the header, or crop the image",
        )


def from_itk(image: Any, *, kind: str, role: str, case: str | None = None, digest: str = "") -> RawImage:
    """A RawImage from a SimpleITK image; only voxels and geometry are taken, no metadata dictionary.

    Raises:
        GeometryError: the spacing is not positive.
    """
    affine = itk_affine(image)
    if not (np.linalg.norm(affine[:3, :3], axis=0) > 1e-3).all() or not np.isfinite(affine).all():
        raise GeometryError(
            f"the {role} image's spacing is not usable",
            expected="positive spacing in mm",
            found=f"{[float(s) for s in image.GetSpacing()]}",
            case=case,
            todo="repair the header",
        )
    array = sitk.GetArrayFromImage(image).astype(np.float32).transpose(2, 1, 0)
    return from_source_array(array, affine, kind=kind, digest=digest)


def itk_affine(image: Any) -> NDArray[np.float64]:
    """(i, j, k, 1) → RAS+ mm of a SimpleITK image."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def to_itk(volume: NDArray[Any], grid: Grid) -> Any:
    """A SimpleITK image of a (D, H, W) array on a RAS+ grid. ITK wants right angles: what rounding left is removed.

    Raises:
        GeometryError: the grid is sheared (`clinfuse_prep.shear.upright` gives one that is not).
    """
    lean = shear_mm(grid)
    if lean > MOST_SHEAR_MM:
        raise GeometryError(
            "the voxel axes are not at right angles",
            expected=f"at most {MOST_SHEAR_MM} mm of shear across the image",
            found=f"{lean:.1f} mm",
            todo="undo the shear (of a tilted gantry, say), or leave this step out",
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume))
    affine = LPS @ squared(grid.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(x) for x in affine[:3, 3]])
    image.SetDirection([float(x) for x in (affine[:3, :3] / spacing).ravel()])
    return image


def transform_matrix(transform: Any) -> NDArray[np.float64]:
    """A linear SimpleITK transform (fixed mm → moving mm, LPS+) as a 4×4 matrix in RAS+ mm."""
    base = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - base
    matrix[:3, 3] = base
    return LPS @ matrix @ LPS

"""NRRD and MetaImage read as NIfTI does; voxels in a second file are followed only beside their header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.read import read_image
from make_sources import head, write_nifti

from clinfuse.errors import InputError


def test_raw_formats_that_simpleitk_reads(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = write_nifti(tmp_path / "mr.nii.gz", head()[0])
    nifti = read_nifti(path, role="anatomy")
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"mr.{suffix}"))
        other = read_image(tmp_path / f"mr.{suffix}", role="anatomy")
        assert np.array_equal(other.volume, nifti.volume)
        assert np.allclose(other.grid.affine, nifti.grid.affine, atol=2e-2)


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_detached_voxels_lie_beside_their_header_or_are_refused(suffix: str, tmp_path: Path) -> None:
    import SimpleITK as sitk
    from clinfuse_prep.geometry import Grid
    from clinfuse_prep.itk import to_itk

    volume = head()[0]
    path = tmp_path / "in" / f"mr.{suffix}"
    path.parent.mkdir()
    sitk.WriteImage(to_itk(volume, Grid(volume.shape, np.diag([5.0, 5.0, 5.0, 1.0]))), str(path))
    whole = read_image(path, role="anatomy")
    assert np.array_equal(whole.volume, volume)
    (data,) = [other for other in path.parent.iterdir() if other != path]
    changed = bytearray(data.read_bytes())
    changed[-20] ^= 1
    if suffix == "mhd":
        data.write_bytes(changed)
        assert read_image(path, role="anatomy").digest != whole.digest, (
            "the voxels count in the source's hash"
        )
    data.rename(tmp_path / data.name)
    path.write_text(path.read_text().replace(data.name, f"../{data.name}"))
    with pytest.raises(InputError, match="does not lead to its voxels"):
        read_image(path, role="anatomy", case="c1")

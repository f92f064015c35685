"""NRRD and MetaImage read as NIfTI does; deep pictures keep their greys; a companion of unstated kind is told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.prepare import prepare_pair
from clinfuse_prep.read import read_image
from make_sources import head, write_nifti
from PIL import Image

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


def test_pictures_of_more_than_8_bits_keep_their_greys(tmp_path: Path) -> None:
    twelve = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(twelve).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png", role="anatomy")
    assert len(np.unique(image.volume)) == twelve.size
    assert image.volume.min() == 0 and image.volume.max() == 255
    assert any("0 … 4095" in note[3] for note in image.notes)
    with pytest.raises(InputError, match="slice of the brain mask image cannot be read"):
        read_image(tmp_path / "none.png", role="brain mask")


@pytest.mark.parametrize("spoil", [lambda hu: np.clip(hu, 0, None), lambda hu: hu + 1000.0])
def test_a_ct_that_is_not_in_hounsfield_units_is_told_of(spoil: Callable[..., Any], tmp_path: Path) -> None:
    mr, ct, _ = head()
    anatomy = write_nifti(tmp_path / "mr.nii.gz", mr)
    companion = write_nifti(tmp_path / "ct.nii.gz", spoil(ct))
    case = prepare_pair(anatomy, companion)
    told = next(f for f in case.attrs["findings"] if "taken as SPECT or PET" in f["problem"])
    assert told["severity"] == "warning" and "-1000 HU" in told["expected"] and "…" in told["found"]
    stated = prepare_pair(anatomy, companion, modalities=("MR", "PET"))
    assert not any("taken as" in f["problem"] for f in stated.attrs["findings"])

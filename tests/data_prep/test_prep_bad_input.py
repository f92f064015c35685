"""Every bad input gives one clear finding that names the pseudonym, the others go on, and no partial case stays."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.store import CaseStore
from make_sources import head, pictures, synthrad, write_nifti
from PIL import Image

Prep = Callable[..., dict[str, Any]]


def missing_partner(folder: Path) -> None:
    (folder / "ct.nii.gz").unlink()


def non_finite(folder: Path) -> None:
    mr = head()[0]
    mr[3, 4, 5] = np.nan
    write_nifti(folder / "mr.nii.gz", mr)


def constant(folder: Path) -> None:
    write_nifti(folder / "mr.nii.gz", np.full_like(head()[0], 7))


def empty_brain(folder: Path) -> None:
    write_nifti(folder / "brain.nii.gz", head()[2] * 0)


def image_as_mask(folder: Path) -> None:
    write_nifti(folder / "brain.nii.gz", np.round(head()[0]).astype(np.int16))


def scaled_image_as_mask(folder: Path) -> None:
    mr = head()[0]
    write_nifti(folder / "brain.nii.gz", (mr - mr.min()) / np.ptp(mr))


def swapped(folder: Path) -> None:
    (folder / "mr.nii.gz").rename(folder / "x.nii.gz")
    (folder / "ct.nii.gz").rename(folder / "mr.nii.gz")
    (folder / "x.nii.gz").rename(folder / "ct.nii.gz")


def truncated_gzip(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_gzip(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    data = bytearray(path.read_bytes())
    data[-20] ^= 255
    path.write_bytes(bytes(data))


def four_d(folder: Path) -> None:
    volume = np.stack([head()[0].transpose(2, 1, 0)] * 2, -1)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "mr.nii.gz")


def zero_spacing(folder: Path) -> None:
    path = folder / "mr.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:92] = np.array([5, 0, 5], "<f4").tobytes()
    data[252:256] = b"\0" * 4
    path.write_bytes(gzip.compress(bytes(data)))


def other_place(folder: Path) -> None:
    write_nifti(folder / "ct.nii.gz", head()[1], np.diag([5.0, 5, 5, 1]) + np.eye(4, k=3) * 4000)


def not_nifti(folder: Path) -> None:
    (folder / "mr.nii.gz").write_bytes(b"this is not an image at all" * 40)


def directory(folder: Path) -> None:
    (folder / "ct.nii.gz").unlink()
    (folder / "ct.nii.gz").mkdir()


BAD = {
    missing_partner: "companion image is missing",
    non_finite: "non-finite voxels",
    constant: "anatomy image is constant",
    empty_brain: "brain mask is empty",
    image_as_mask: "brain mask is no mask",
    scaled_image_as_mask: "brain mask is no mask",
    swapped: "MRI and CT are swapped",
    truncated_gzip: "cannot be read to its end",
    damaged_gzip: "cannot be read to its end",
    four_d: "is 4D",
    zero_spacing: "spacing or affine is not usable",
    other_place: "show different places",
    not_nifti: "not a NIfTI file",
    directory: "companion image is missing",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_one_bad_case_is_reported_and_the_others_go_on(
    spoil: Callable[[Path], None], tmp_path: Path, prep: Prep
) -> None:
    source = synthrad(tmp_path / "source", 3)
    spoil(source / "Task1" / "brain" / "1BA002")
    result = prep(source, "--out", tmp_path / "d.zarr", "--layout", "synthrad")
    assert (result["cases"], result["lost"]) == (2, 1)
    store = CaseStore(tmp_path / "d.zarr")
    lost = store.manifest().query("state == 'lost'").iloc[0]
    problem = next(p for p in result["problems"] if p["severity"] == "error")
    assert BAD[spoil] in problem["problem"]
    assert problem["case"] == lost["case_id"]
    assert problem["todo"]
    assert "1BA002" not in str(result["problems"]) + lost["findings"]
    assert str(tmp_path) not in str(result["problems"])
    assert lost["case_id"] not in store.case_ids()
    assert len(store.case_ids()) == 2
    assert not list((tmp_path / "d.zarr" / ".aside").glob("*"))


def test_picture_pairs_of_unequal_shape(tmp_path: Path, prep: Prep) -> None:
    source = pictures(tmp_path / "source", 3)
    for path in (source / "case_2" / "CT").iterdir():
        Image.open(path).crop((0, 0, 100, 150)).save(path)
    result = prep(source, "--out", tmp_path / "d.zarr", "--layout", "pairs")
    assert (result["cases"], result["lost"]) == (2, 1)
    assert any("unequal shapes" in problem["problem"] for problem in result["problems"])


def test_a_damaged_picture(tmp_path: Path, prep: Prep) -> None:
    source = pictures(tmp_path / "source", 3)
    path = next((source / "case_1" / "MRI").iterdir())
    path.write_bytes(path.read_bytes()[:60])
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (2, 1)
    assert any(
        "slice of the anatomy image cannot be read" in problem["problem"] for problem in result["problems"]
    )


def test_cohort_images_must_lie_on_one_grid(tmp_path: Path, prep: Prep) -> None:
    source = tmp_path / "cohort"
    (source / "sub-01").mkdir(parents=True)
    (source / "cohort.json").write_text('{"simulated": true}')
    mr, ct, brain = head()
    for name, volume in {"mr": mr, "ct": ct, "ct_aligned": ct, "brain": brain, "bone": brain}.items():
        write_nifti(source / "sub-01" / f"{name}.nii.gz", volume)
    write_nifti(source / "sub-01" / "lesion.nii.gz", brain[:-1])
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert result["lost"] == 1
    assert "unequal shape or grid" in result["problems"][0]["problem"]

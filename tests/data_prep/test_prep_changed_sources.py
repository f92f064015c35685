"""Resumed with other files, a dataset is made of these: cases whose images or masks changed are prepared anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinfuse_prep.read import image_digest, read_image
from clinfuse_prep.store import CaseStore
from make_sources import AFFINE, head, pictures, synthrad, write_nifti, write_series

from clinfuse.errors import ConfigError

Prep = Callable[..., dict[str, Any]]


def lesion(first: int) -> np.ndarray:
    """A mask (D, H, W) of one box that begins at a plane."""
    mask = np.zeros_like(head()[2])
    mask[first : first + 3, 12:18, 12:16] = 1
    return mask


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """Which folder each case lies in: another one once it has been written anew."""
    return {folder.name: (folder.stat().st_ino, folder.stat().st_ctime_ns) for folder in out.glob("cases/c*")}


def patient_of(out: Path, name: str) -> str:
    """The pseudonym of a case of a source."""
    for line in (Path(f"{out}.key") / "links.csv").read_text().splitlines():
        if line.endswith(name):
            return line.split(",")[0]
    raise AssertionError(name)


def anew(out: Path, before: dict[str, tuple[int, int]]) -> list[str]:
    """Cases that were written since."""
    return [name for name, place in identities(out).items() if before.get(name) != place]


def test_a_case_of_changed_images_is_prepared_anew_and_no_other(
    tmp_path: Path, prep: Prep, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = synthrad(tmp_path / "s", 3), tmp_path / "d.zarr"
    prep(source, "--out", out)
    before = identities(out)
    write_nifti(source / "Task1" / "brain" / "1BA002" / "mr.nii.gz", head(9)[0])
    capsys.readouterr()
    result = prep(source, "--out", out, "--resume")
    name = patient_of(out, "1BA002")
    assert (result["cases"], result["kept"], result["changed"]) == (3, 2, [name])
    assert anew(out, before) == [name]
    told = capsys.readouterr().err
    assert "other files than before: 1 case" in " ".join(told.split())
    assert "1BA002" not in told + json.dumps(result)
    fresh = tmp_path / "fresh.zarr"
    prep(source, "--out", fresh, "--key", f"{out}.key")
    assert (out / "manifest.parquet").read_bytes() == (fresh / "manifest.parquet").read_bytes()
    assert prep(source, "--out", out, "--resume")["changed"] == [], "and once"


def test_masks_given_now_are_in_the_dataset(tmp_path: Path, prep: Prep) -> None:
    """Added, drawn again, and taken back."""
    source, out, masks = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr", tmp_path / "m"
    file = masks / "1BA001" / "lesion.nii.gz"
    prep(source, "--out", out)
    name = patient_of(out, "1BA001")
    for first in (5, 6):
        write_nifti(file, lesion(first))
        result = prep(source, "--out", out, "--resume", "--masks", masks)
        assert (result["kept"], result["changed"]) == (1, [name])
        assert np.flatnonzero(CaseStore(out).read(name).lesion.any(axis=(1, 2)))[0] == first
    assert prep(source, "--out", out, "--resume", "--masks", masks)["kept"] == 2
    assert prep(source, "--out", out, "--resume")["changed"] == [name]
    assert CaseStore(out).attributes(name)["provenance"]["lesion"] == "absent"


def test_corrected_masks_are_not_lost_to_changed_images(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 1), tmp_path / "d.zarr"
    prep(source, "--out", out)
    store = CaseStore(out)
    (name,) = store.case_ids()
    store.replace_masks(name, {"brain": np.roll(store.read(name).brain, 1, axis=2)}, "corrected")
    assert prep(source, "--out", out, "--resume")["kept"] == 1
    write_nifti(source / "Task1" / "brain" / "1BA001" / "mr.nii.gz", head(9)[0])
    with pytest.raises(ConfigError, match=r"corrected masks in 1 case of 1 case"):
        prep(source, "--out", out, "--resume")


def test_a_case_whose_image_is_damaged_now_is_told_of(tmp_path: Path, prep: Prep) -> None:
    source, out = synthrad(tmp_path / "s", 2), tmp_path / "d.zarr"
    prep(source, "--out", out)
    image = source / "Task1" / "brain" / "1BA002" / "ct.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(b"nothing")
    result = prep(source, "--out", out, "--resume")
    assert (result["cases"], result["kept"], result["lost"]) == (1, 1, 1)
    image.write_bytes(whole)
    result = prep(source, "--out", out, "--resume")
    assert (result["cases"], result["kept"], result["lost"]) == (2, 1, 0)


@pytest.mark.parametrize("kind", ["nifti", "pictures", "dicom", "detached"])
def test_an_image_is_known_again_without_reading_its_voxels(kind: str, tmp_path: Path) -> None:
    """By the digest that reading gives, whatever the order of the files; and a change of one of them shows."""
    import SimpleITK as sitk

    volume = head()[1]
    if kind == "nifti":
        files: list[Path] = [write_nifti(tmp_path / "ct.nii.gz", volume, AFFINE)]
    elif kind == "pictures":
        files = sorted((pictures(tmp_path, 1) / "case_1" / "CT").iterdir())
    elif kind == "dicom":
        files = sorted(write_series(tmp_path / "series", volume, "CT").iterdir())[::-1]
    else:
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "ct.mhd"))
        files = [tmp_path / "ct.mhd"]
    known = image_digest(files, role="companion")
    assert known == read_image(files, role="companion").digest
    changed = tmp_path / "ct.raw" if kind == "detached" else files[-1]
    data = bytearray(changed.read_bytes())
    data[-9] ^= 1
    changed.write_bytes(data)
    assert image_digest(files, role="companion") != known

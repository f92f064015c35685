"""Identifiers planted in every field of NIfTI and DICOM headers, in file names and tables, reach nothing we write."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.pseudonym import Pseudonyms, open_key
from clinfuse_prep.store import CaseStore
from clinfuse_prep.verbs import INSPECT, MASKS
from make_sources import AFFINE, head, write_series

from clinfuse.errors import InputError

SECRET = "Mustermann"
BIRTHDAY = "19410203"


def planted_nifti(path: Path, volume: np.ndarray) -> None:
    """A NIfTI with the secret in every text field and in an extension."""
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), AFFINE)
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[name] = SECRET.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{SECRET} {BIRTHDAY}".encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def words_in(folder: Path) -> list[str]:
    """Files below the folder, also inside gzip, whose bytes or name hold a planted word."""
    found = []
    for path in folder.rglob("*"):
        data = str(path.relative_to(folder)).encode()
        if path.is_file():
            raw = path.read_bytes()
            data += raw + (gzip.decompress(raw) if path.suffix == ".gz" else b"")
        if any(word.encode().lower() in data.lower() for word in (SECRET, BIRTHDAY, "20200304")):
            found.append(str(path))
    return found


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_no_identifier_survives(
    kind: str, tmp_path: Path, prep: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"{SECRET}_{BIRTHDAY}"
    mr, ct, _ = head()
    for number in range(2):
        name = f"{SECRET}{number}"
        if kind == "nifti":
            planted_nifti(source / name / "mr.nii.gz", mr)
            planted_nifti(source / name / "ct.nii.gz", ct)
        else:
            write_series(source / name / "mr", mr, "MR", patient=SECRET)
            write_series(source / name / "ct", ct, "CT", patient=SECRET)
    damaged = source / f"{SECRET}9"
    damaged.mkdir()
    (damaged / "mr.nii.gz").write_bytes(SECRET.encode() * 50)
    (damaged / "ct.nii.gz").write_bytes(SECRET.encode() * 50)
    out = tmp_path / "out" / "d.zarr"
    result = prep(
        source,
        "--out",
        out,
        "--key",
        tmp_path / "key",
        "--layout",
        "synthrad" if kind == "nifti" else "dicom",
    )
    assert result["cases"] == 2
    parser = argparse.ArgumentParser()
    INSPECT.add_arguments(parser)
    INSPECT.run(parser.parse_args([str(out)]))
    parser = argparse.ArgumentParser()
    MASKS.add_arguments(parser)
    MASKS.run(parser.parse_args(["export", str(out), "--dir", str(tmp_path / "out" / "masks"), "--images"]))
    assert words_in(tmp_path / "out") == []
    printed = capsys.readouterr()
    assert SECRET.lower() not in (printed.out + printed.err + str(result["problems"])).lower()


def test_the_key_stays_outside_and_is_its_owners(tmp_path: Path, prep: Callable[..., dict[str, Any]]) -> None:
    mr, ct, _ = head()
    planted_nifti(tmp_path / "s" / "anna" / "mr.nii.gz", mr)
    planted_nifti(tmp_path / "s" / "anna" / "ct.nii.gz", ct)
    prep(tmp_path / "s", "--out", tmp_path / "d.zarr")
    key = tmp_path / "d.zarr.key"
    assert (key / "key.hex").stat().st_mode & 0o077 == 0
    assert (key / "links.csv").stat().st_mode & 0o077 == 0
    case_id = CaseStore(tmp_path / "d.zarr").case_ids()[0]
    assert (key / "links.csv").read_text().splitlines()[1] == ",".join(
        [case_id, open_key(key).patient("anna"), "anna", "anna"]
    )


def test_pseudonyms_depend_on_the_key_alone() -> None:
    one, two = Pseudonyms(b"k" * 32), Pseudonyms(b"l" * 32)
    assert one.case("p", "n") == Pseudonyms(b"k" * 32).case("p", "n")
    assert one.case("p", "n") != two.case("p", "n")
    assert one.case("p", "n") != one.case("p", "m")
    assert "p" not in one.patient("patient")[1:]


def test_damaged_tags_are_not_quoted_in_any_log(tmp_path: Path, capfd: Any, caplog: Any) -> None:
    """pydicom and ITK like to warn with a damaged value or a file's name in the text."""
    from clinfuse_prep.read import read_image
    from clinfuse_prep.sources import find_cases

    folder = write_series(tmp_path / "SECRET" / "series", head()[1][:3])
    for path in folder.iterdir():
        path.write_bytes(
            path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2", b"SECRET^.10008.5.1.4.1.1.2")
        )
    read_image(folder, role="companion", case="c1")
    find_cases(tmp_path)
    (tmp_path / "SECRET.mha").write_bytes(b"ObjectType = Image\nNDims = 3\nSECRET\nElementDataFile = LOCAL\n")
    with pytest.raises(InputError):
        read_image(tmp_path / "SECRET.mha", role="companion", case="c1")
    out, err = capfd.readouterr()
    assert "SECRET" not in out + err + caplog.text

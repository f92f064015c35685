"""Whatever is done to a file, reading it gives an image or one InputError, with bounded memory."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.read import read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_sources import head, write_nifti, write_series

from clinfuse.errors import InputError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small uncompressed NIfTI."""
    path = tmp_path_factory.mktemp("plain") / "mr.nii"
    return write_nifti(path, head()[0][:4, :8, :8].astype(np.int16)).read_bytes()


def attempt(data: bytes, folder: Path, name: str = "x.nii") -> None:
    path = folder / name
    path.write_bytes(data)
    try:
        image = read_nifti(path, role="anatomy", case="c1", max_voxels=2**20)
    except InputError as error:
        assert error.case == "c1"
        assert str(folder) not in str(error)
    else:
        assert image.volume.ndim == 3
        assert image.volume.dtype == np.float32
        assert np.isfinite(image.grid.affine).all()
        assert min(image.grid.spacing) > 0


@QUICK
@given(flips=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_headers_with_changed_bytes(plain: bytes, tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(plain)
    for place, value in flips:
        data[place] = value
    attempt(bytes(data), tmp_path)


@QUICK
@given(sizes=st.lists(st.integers(-32768, 32767), min_size=8, max_size=8), code=st.integers(0, 2500))
def test_any_dimensions_and_data_types(plain: bytes, tmp_path: Path, sizes: list[int], code: int) -> None:
    data = bytearray(plain)
    data[40:56] = np.array(sizes, "<i2").tobytes()
    data[70:72] = np.array([code], "<i2").tobytes()
    attempt(bytes(data), tmp_path)


@QUICK
@given(length=st.integers(0, 900), compress=st.booleans())
def test_files_that_end_early(plain: bytes, tmp_path: Path, length: int, compress: bool) -> None:
    data = gzip.compress(plain)[:length] if compress else plain[:length]
    attempt(data, tmp_path, "x.nii.gz" if compress else "x.nii")


@QUICK
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_compressed_files_with_a_flipped_bit(plain: bytes, tmp_path: Path, place: int, bit: int) -> None:
    data = bytearray(gzip.compress(plain, mtime=0))
    data[place % len(data)] ^= 1 << bit
    attempt(bytes(data), tmp_path, "x.nii.gz")


@QUICK
@given(junk=st.binary(max_size=1200))
def test_files_that_are_something_else(tmp_path: Path, junk: bytes) -> None:
    for name in ("x.nii", "x.nrrd", "x.mha", "x.png", "x.dcm"):
        (tmp_path / name).write_bytes(junk)
        with pytest.raises(InputError):
            read_image(tmp_path / name, role="anatomy", case="c1")


@QUICK
@given(place=st.integers(0, 5000), value=st.integers(0, 255))
def test_damaged_dicom_slices(tmp_path: Path, place: int, value: int) -> None:
    folder = tmp_path / "series"
    if not folder.exists():
        write_series(folder, head()[1][:3])
    data = bytearray((folder / "001.dcm").read_bytes())
    data[place % len(data)] = value
    other = tmp_path / "other"
    other.mkdir(exist_ok=True)
    for name in ("000.dcm", "002.dcm"):
        (other / name).write_bytes((folder / name).read_bytes())
    (other / "001.dcm").write_bytes(bytes(data))
    try:
        image = read_image(other, role="companion", case="c1")
    except InputError:
        return
    assert image.volume.ndim == 3


@pytest.mark.parametrize("kind", [b"UL", b"ES"])
def test_a_tag_of_a_wrong_kind_makes_no_slice(tmp_path: Path, kind: bytes) -> None:
    """Columns as a number of another length, or of a kind that DICOM does not know: found by the search above."""
    write_series(tmp_path, head()[1][:1])
    file = tmp_path / "000.dcm"
    columns = b"\x28\x00\x11\x00"
    data = file.read_bytes()
    assert columns + b"US" in data
    file.write_bytes(data.replace(columns + b"US", columns + kind))
    with pytest.raises(InputError, match="no readable DICOM slices"):
        read_image(tmp_path, role="companion", case="c1")


def claiming(sizes: tuple[int, int, int]) -> bytes:
    header = nib.Nifti2Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(sizes)
    header.set_sform(np.eye(4), 1)
    header["pixdim"][1:4] = 1
    header["magic"] = b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = 544
    return bytes(header.binaryblock) + b"\0" * 400


def peak_mb(path: Path) -> float:
    tracemalloc.start()
    with pytest.raises(InputError):
        read_nifti(path, role="anatomy", case="c1")
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def test_a_header_that_claims_60000_cubed_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.nii"
    path.write_bytes(claiming((60_000, 60_000, 60_000)))
    assert peak_mb(path) < 5


MHA = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = %d %d %d\nElementType = MET_SHORT\n"
MHA += b"ElementSpacing = 1 1 1\nElementDataFile = LOCAL\n"
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: %d %d %d\nspace: left-posterior-superior\n"
NRRD += b"space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\nendian: little\n\n"


@pytest.mark.parametrize("name, header", [("x.mha", MHA), ("x.nrrd", NRRD)])
def test_raw_volumes_that_claim_too_much_or_hold_too_little(name: str, header: bytes, tmp_path: Path) -> None:
    for size, words in ((60_000, "claims to be too large"), (64, "cannot be read")):
        (tmp_path / name).write_bytes(header % (size, size, size) + b"\0" * 100)
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / name, role="anatomy", case="c1")


def test_a_header_that_claims_what_the_file_does_not_hold_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "claims.nii"
    path.write_bytes(claiming((640, 640, 600)))
    assert peak_mb(path) < 8


def test_a_zip_bomb_is_cut_off_at_the_headers_claim(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    small = claiming((8, 8, 8))
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(small)
        for _ in range(64):
            stream.write(b"\0" * (1 << 20))
    tracemalloc.start()
    read_nifti(path, role="anatomy", case="c1")
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak < 12


def test_a_picture_that_claims_to_be_huge(tmp_path: Path) -> None:
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "1001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    with pytest.raises(InputError, match=r"too large|cannot be read"):
        read_image(tmp_path / "1001.png", role="anatomy", case="c1")

"""Fused files: names, geometry, units, PNG slices, atomicity."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from maps import Maps
from PIL import Image

from clinfuse import RESEARCH_USE
from clinfuse.case import Case, FloatArray
from clinfuse.errors import InputError
from clinfuse.outputs import bundle, case_grid, encode_fused, jsonable, nifti_bytes, output_stem, write_fused


def maps_of(case: Case) -> Maps:
    rng = np.random.default_rng(0)
    fused, doubt = (rng.random(case.shape, dtype=np.float32) for _ in range(2))
    return Maps(fused, doubt, interval=0.5 * doubt, info={"preset": "balanced", "seed": np.int64(3)})


def test_volume_is_written_with_names_geometry_and_sidecar(tiny_case: Case, tmp_path: Path) -> None:
    maps = maps_of(tiny_case)
    paths = write_fused(maps, tiny_case, tmp_path / "out")
    assert sorted(paths) == ["fused", "interval", "sidecar", "uncertainty"]
    assert paths["fused"].name == "sub-tiny_desc-fused_MR.nii.gz"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in paths.values()}
    image = nib.load(paths["fused"])
    np.testing.assert_array_equal(np.asarray(image.dataobj), maps.fused.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, tiny_case.affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), tiny_case.affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    doubt = nib.load(paths["uncertainty"])
    assert doubt.header["descrip"].item() == b"clinfuse uncertainty image. Research use only."
    sidecar = json.loads(paths["sidecar"].read_text())
    assert sidecar["seed"] == 3 and sidecar["IntendedUse"] == RESEARCH_USE
    assert sidecar["Files"]["uncertainty"] == paths["uncertainty"].name
    assert sidecar["findings"] == []


def test_the_sidecar_holds_findings_and_one_account_of_units(tiny_case: Case) -> None:
    seen = {"case": "tiny", "severity": "warning", "problem": "odd", "todo": "look"}
    case = replace(tiny_case, attrs={**tiny_case.attrs, "findings": [seen]})
    maps = maps_of(case)
    maps.info["units"] = {"fused": "grey", "uncertainty": "calibrated, 0 to 1", "interval": None}
    sidecar = json.loads(encode_fused(maps, case)["sidecar"][1])
    assert sidecar["findings"] == [seen]
    assert sidecar["units"]["uncertainty"] == "calibrated, 0 to 1"
    assert set(sidecar["units"]) == set(sidecar["Files"]) and "Units" not in sidecar


def test_world_position_of_a_marked_voxel_survives(tiny_case: Case, tmp_path: Path) -> None:
    maps = maps_of(tiny_case)
    maps.fused[:] = 0
    maps.fused[5, 20, 9] = 1
    image = nib.load(write_fused(maps, tiny_case, tmp_path)["fused"])
    voxel = np.argwhere(np.asarray(image.dataobj) == 1)[0]
    np.testing.assert_allclose(
        image.affine @ [*voxel, 1], tiny_case.affine @ [9, 20, 5, 1], rtol=0, atol=1e-4
    )


def test_another_geometry_is_used_as_given(tiny_case: Case, tmp_path: Path) -> None:
    flipped = np.diag([-1.0, 1, 1, 1])

    def geometry(volume: FloatArray, case: Case) -> tuple[Any, Any]:
        array, affine = case_grid(volume, case)
        return array[::-1], affine @ flipped

    image = nib.load(write_fused(maps_of(tiny_case), tiny_case, tmp_path, geometry)["fused"])
    np.testing.assert_allclose(image.affine, tiny_case.affine @ flipped, atol=1e-5)


@pytest.mark.parametrize("lean", [0.0, 1.0])
def test_a_quaternion_never_contradicts_the_affine(lean: float) -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[1, 2] = lean
    image = nib.Nifti1Image.from_bytes(nifti_bytes(np.zeros((3, 4, 5), np.float32), affine))
    assert np.allclose(image.get_sform(coded=True)[0], affine)
    quaternion, code = image.get_qform(coded=True)
    assert code == 0 if lean else np.allclose(quaternion, affine)


def test_slice_becomes_png_of_same_size_and_a_volume_does_not(tiny_case: Case, tmp_path: Path) -> None:
    single = tiny_case.slices(4, 5)
    maps = maps_of(single)
    paths = write_fused(maps, single, tmp_path, image_format="png")
    fused, doubt = (np.asarray(Image.open(paths[key])) for key in ("fused", "uncertainty"))
    assert fused.shape == single.shape[1:] and fused.dtype == np.uint8
    np.testing.assert_allclose(fused / 255, maps.fused[0, ::-1, ::-1], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(doubt / 65535, maps.uncertainty[0, ::-1, ::-1], atol=1 / 65535)
    assert (
        Image.open(paths["uncertainty"]).text["Description"] == f"clinfuse uncertainty image. {RESEARCH_USE}"
    )
    with pytest.raises(InputError, match="one slice"):
        encode_fused(maps_of(tiny_case), tiny_case, image_format="png")


def test_labels_hold_letters_and_digits_only(tiny_case: Case) -> None:
    case = replace(tiny_case, case_id="sub-../a_7", modalities=("T1w-x", "CT"))
    assert output_stem(case, "fused") == "sub-a7_desc-fused_T1wx"
    assert output_stem(replace(case, case_id="../"), "fused") == "sub-unnamed_desc-fused_T1wx"


def test_maps_off_the_grid_or_not_finite_are_refused(tiny_case: Case) -> None:
    maps = maps_of(tiny_case)
    with pytest.raises(InputError, match="grid"):
        encode_fused(replace_map(maps, maps.fused[:-1]), tiny_case)
    broken = maps.fused.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        encode_fused(replace_map(maps, broken), tiny_case)


def replace_map(maps: Maps, fused: FloatArray) -> Maps:
    return Maps(fused, maps.uncertainty, maps.interval, maps.info)


def test_bundle_is_repeatable_and_holds_the_inputs_if_asked(tiny_case: Case) -> None:
    maps = maps_of(tiny_case)
    first, second = (bundle(encode_fused(maps, tiny_case, inputs=True)) for _ in range(2))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert len(names) == 6 and "sub-tiny_desc-companion_MR.nii.gz" in names


def test_simulated_cases_say_so(tiny_case: Case) -> None:
    case = replace(tiny_case, attrs={**tiny_case.attrs, "simulated": True})
    sidecar = json.loads(encode_fused(maps_of(case), case)["sidecar"][1])
    assert sidecar["Simulated"] is True and "simulated CT" in sidecar["SimulatedNote"]


def test_jsonable_has_no_nan() -> None:
    value = {"a": np.float32(0.5), "b": [float("nan"), np.arange(2)], 3: Path("x"), "c": (True, None)}
    assert jsonable(value) == {"a": 0.5, "b": [None, [0, 1]], "3": "x", "c": [True, None]}


@pytest.mark.parametrize("mirrored", [False, True])
def test_dicom_maps_hold_every_voxel_in_its_place(tiny_case: Case, mirrored: bool) -> None:
    """The oblique (and mirrored) affine in LPS+ mm, read back by highdicom: same value at the same position."""

    def geometry(volume: FloatArray, case: Case) -> tuple[Any, Any]:
        array, affine = case_grid(volume, case)
        return (array[::-1], affine @ to_other_end) if mirrored else (array, affine)

    to_other_end = np.diag([-1.0, 1, 1, 1])
    to_other_end[0, 3] = tiny_case.shape[2] - 1
    maps = maps_of(tiny_case)
    maps.fused[2, 11, 23] = 7.0
    files = encode_fused(maps, tiny_case, geometry, image_format="dicom")
    assert files["fused"][0] == "sub-tiny_desc-fused_MR.dcm"
    volume = highdicom.imread(io.BytesIO(files["fused"][1])).get_volume()
    (voxel,) = np.argwhere(volume.array == 7)
    position = np.diag([-1, -1, 1, 1]) @ volume.affine @ [*voxel, 1]
    np.testing.assert_allclose(position, tiny_case.affine @ [23, 11, 2, 1], atol=1e-6)
    np.testing.assert_array_equal(np.sort(volume.array, axis=None), np.sort(maps.fused, axis=None))
    again = encode_fused(maps, tiny_case, geometry, image_format="dicom")
    assert again == files, "equal content makes equal files"


def test_dicom_says_research_and_tells_no_date(tiny_case: Case) -> None:
    tiny_case.attrs["simulated"] = True
    name, data = encode_fused(maps_of(tiny_case), tiny_case, image_format="dicom")["uncertainty"]
    image = pydicom.dcmread(io.BytesIO(data))
    assert name.endswith(".dcm") and image.ContentQualification == "RESEARCH"
    assert image.SeriesDescription == "uncertainty, simulated CT, research use only"
    assert image.PatientID == "tiny" and not image.StudyDate and not image.PatientBirthDate
    dates = {str(e.value) for e in image.iterall() if e.VR in ("DA", "DT") and e.value}
    assert all(date.startswith("1900") for date in dates)


def test_dicom_refuses_skewed_axes(tiny_case: Case) -> None:
    skewed = replace(tiny_case, affine=tiny_case.affine @ (np.eye(4) + 0.1 * np.eye(4, k=1)))
    with pytest.raises(InputError, match="right angles"):
        encode_fused(maps_of(tiny_case), skewed, image_format="dicom")

"""Picture slices are numbered by their names, and none is lost without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clinfuse_prep.read import read_image
from clinfuse_prep.slice_numbers import slice_numbers
from clinfuse_prep.store import CaseStore
from make_sources import pictures

from clinfuse.errors import InputError

Prep = Callable[..., dict[str, Any]]


def renamed(source: Path, name: Callable[[str, int], str]) -> Path:
    for folder in sorted(source.glob("*/*")):
        for number, path in enumerate(sorted(folder.iterdir()), 1):
            path.rename(folder / name(folder.name, number))
    return source


def test_slices_are_numbered_by_what_differs(tmp_path: Path, prep: Prep) -> None:
    source = renamed(pictures(tmp_path / "s", 1), lambda kind, number: f"{kind}_{number}_of_04.png")
    (source / "case_1" / "CT" / "CT_2_of_04.png").unlink()
    prep(source, "--out", tmp_path / "d.zarr")
    store = CaseStore(tmp_path / "d.zarr")
    case = store.read(store.case_ids()[0])
    assert case.attrs["slice_numbers"] == [1, 3, 4] and case.shape[0] == 3


def test_slices_without_clear_numbers_cost_the_case_and_no_other(tmp_path: Path, prep: Prep) -> None:
    source = pictures(tmp_path / "s", 2)
    renamed(source, lambda kind, number: f"{kind}_{number}.png")
    for path in sorted((source / "case_1" / "CT").iterdir()):
        path.rename(path.with_name(f"CT_{'abcd'[int(path.stem[-1]) - 1]}_of_05.png"))
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 1)
    (told,) = [p for p in result["problems"] if p["severity"] == "error"]
    assert "numbers cannot be told" in told["problem"] and "case_1" not in str(result)
    with pytest.raises(InputError, match="numbers cannot be told"):
        read_image(source / "case_1" / "CT", role="companion")


def test_a_masks_pictures_of_no_slice_are_not_no_mask(tmp_path: Path, prep: Prep) -> None:
    source = pictures(tmp_path / "s", 2)
    (source / "case_1" / "lesion").mkdir()
    shutil.copy(source / "case_1" / "CT" / "1003.png", source / "case_1" / "lesion" / "1099.png")
    result = prep(source, "--out", tmp_path / "d.zarr")
    assert (result["cases"], result["lost"]) == (1, 1)
    assert any("lesion mask's slices are not the images'" in p["problem"] for p in result["problems"])


@pytest.mark.parametrize(
    ("folders", "numbers"),
    [
        ([["20003", "20004"], ["20003"]], [[3, 4], [3]]),
        ([["1003"], ["2003"]], [[3], [3]]),
        ([["998", "999", "1000", "1001"], ["1000", "1001"]], [[998, 999, 1000, 1001], [1000, 1001]]),
        ([["MRI_01_of_02", "MRI_02_of_02"], ["CT_02_of_02"]], [[1, 2], [2]]),
        ([["im3_512x512", "im4_512x512"]], [[3, 4]]),
        ([["a"], ["b"]], [[-1], [-1]]),
        ([["1_1_5", "2_2_5"]], [[1, 2]]),
    ],
)
def test_numbers_of_names(folders: list[list[str]], numbers: list[list[int]]) -> None:
    found = slice_numbers(*[[Path(f"{name}.png") for name in names] for names in folders])
    assert [list(slices) for slices in found] == numbers
    assert [[path.stem for path in slices.values()] for slices in found] == folders


@pytest.mark.parametrize(
    "names", [["a", "b"], ["s1.0", "s1.5", "s2.0"], ["1_1_5", "2_3_5"], ["1", "20200304001"], ["1", "01"]]
)
def test_names_that_do_not_number_slices(names: list[str]) -> None:
    with pytest.raises(InputError, match="numbers cannot be told") as caught:
        slice_numbers([Path(f"{name}.png") for name in names])
    assert "2020" not in str(caught.value)

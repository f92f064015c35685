"""Slice numbers from the names of picture slices: which of a name's numbers counts, judged over all names of a case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from clinfuse.errors import InputError

MOST = 9999
Names = Sequence[Sequence[int]]
"""The numbers in each name of a folder, in the order of the names."""


def slice_numbers(*folders: Sequence[Path]) -> list[dict[int, Path]]:
    """Slice number → picture, for each folder of one case.

    The number is the last in the name that differs for all pictures of a folder, the same one in all folders: 3 of
    `MRI_03` and of `MRI_03_of_12`. Thousands that a folder's pictures share are left away: 15 of `20015`. A name
    without digits has -1.

    Raises:
        InputError: no number of the names differs for all pictures of each folder, several do but not the last, or
            the numbers lie far apart, as dates and times do.
    """
    names = [[[int(run) for run in re.findall(r"\d+", path.stem)] or [-1] for path in f] for f in folders]
    counts = _counting(names)
    lows = _lows(counts)
    if any(number - low > MOST for numbers, low in zip(counts, lows, strict=True) for number in numbers):
        raise _unclear("numbers that lie far apart")
    return [
        {number - low if number >= 0 else number: path for number, path in zip(numbers, folder, strict=True)}
        for numbers, low, folder in zip(counts, lows, folders, strict=True)
    ]


def _counting(folders: Sequence[Names]) -> list[list[int]]:
    """The number that counts, of each name of each folder: the last, else the only one that can."""
    last = _at(folders, 1)
    if last is not None:
        return last
    most = max(len(name) for names in folders for name in names)
    others = [found for place in range(2, most + 1) if (found := _at(folders, place)) is not None]
    if not others:
        raise _unclear("repeated or missing numbers")
    if any(found != others[0] for found in others):
        raise _unclear(f"{len(others)} numbers that might count the slices")
    return others[0]


def _unclear(found: str) -> InputError:
    return InputError(
        "the slices' numbers cannot be told from the pictures' names",
        expected="a number in each name, last of all, that no other slice of the folder has",
        found=found,
        todo="rename the pictures, such as MRI/001.png and CT/001.png",
    )


def _at(folders: Sequence[Names], place: int) -> list[list[int]] | None:
    """The numbers at a place, counted from the end, or None where one is missing or two of a folder are equal."""
    if any(len(name) < place and name != [-1] for names in folders for name in names):
        return None
    found = [[name[-min(place, len(name))] for name in names] for names in folders]
    return found if all(len(set(numbers)) == len(numbers) for numbers in found) else None


def _lows(folders: Sequence[Sequence[int]]) -> list[int]:
    """The thousands to leave away: each folder's own where all its pictures share them, else the least of all."""
    thousands = [{number // 1000 * 1000 for number in numbers if number >= 0} or {0} for numbers in folders]
    if all(len(found) == 1 for found in thousands):
        return [min(found) for found in thousands]
    return [min(min(found) for found in thousands)] * len(folders)

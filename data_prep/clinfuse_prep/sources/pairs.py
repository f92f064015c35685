"""Layout `pairs`: picture slices by patient and modality, `<source>/<patient>/{MRI,CT}/<name><slice>.png`."""

from __future__ import annotations

from pathlib import Path

from clinfuse.errors import InputError
from clinfuse_prep.slice_numbers import slice_numbers
from clinfuse_prep.slices import SUFFIXES
from clinfuse_prep.sources.case import Note, SourceCase

ANATOMY = {"mri": "MR", "mr": "MR", "t1": "MR", "t2": "MR"}
COMPANION = {"ct": "CT", "spect": "SPECT", "pet": "PET"}
MASKS = ("brain", "bone", "lesion")


def matches(source: Path) -> bool:
    """Whether any subfolder holds both an MRI and a companion folder of pictures."""
    return any(_folders(folder) != {} for folder in _subfolders(source))


def find(source: Path) -> list[SourceCase]:
    """One case per patient folder; pictures are paired by slice number."""
    return [_case(folder) for folder in _subfolders(source) if _folders(folder)]


def _subfolders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir())


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _folders(folder: Path) -> dict[str, Path]:
    """Role or modality → subfolder, for subfolders that hold pictures."""
    found: dict[str, Path] = {}
    for sub in _subfolders(folder):
        name = sub.name.lower()
        if (name in ANATOMY or name in COMPANION or name in MASKS) and _pictures(sub):
            found[name] = sub
    return found


def _case(folder: Path) -> SourceCase:
    found = _folders(folder)
    anatomy = next((name for name in ANATOMY if name in found), None)
    companion = next((name for name in COMPANION if name in found), None)
    roles = {"anatomy": anatomy, "companion": companion, **{m: m if m in found else None for m in MASKS}}
    files, numbers, notes = _paired({role: _pictures(found[name]) for role, name in roles.items() if name})
    return SourceCase(
        patient=folder.name,
        name=folder.name,
        files=files,
        modalities=(ANATOMY.get(anatomy or "", "MR"), COMPANION.get(companion or "", "CT")),
        facts={"slice_numbers": numbers},
        notes=tuple(notes),
    )


def _paired(pictures: dict[str, list[Path]]) -> tuple[dict[str, tuple[Path, ...]], list[int], list[Note]]:
    """Each role's pictures of the slices that both images have, these slices' numbers, and what was noticed."""
    try:
        slices = dict(zip(pictures, slice_numbers(*pictures.values()), strict=True))
    except InputError as error:
        note = ("error", error.problem, error.expected, error.found, error.todo)
        return {role: tuple(paths) for role, paths in pictures.items()}, [], [note]
    pair = [set(slices.get(role, {})) for role in ("anatomy", "companion")]
    numbers = sorted(pair[0] & pair[1]) if all(pair) else sorted(pair[0] | pair[1])
    files = {role: tuple(paths[n] for n in numbers if n in paths) for role, paths in slices.items()}
    unmatched = [_unmatched(role) for role in MASKS if role in files and numbers and not files[role]]
    return files, numbers, [*_notes(pair, numbers), *unmatched]


def _notes(pair: list[set[int]], numbers: list[int]) -> list[Note]:
    notes: list[Note] = []
    alone = pair[0] ^ pair[1]
    if all(pair) and alone:
        notes.append(
            (
                "warning",
                "some slices have no partner and were left out",
                "each slice in both modalities",
                f"{len(alone)} without: {_ranges(sorted(alone))}",
                "add the missing slices",
            )
        )
    gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers else []
    if gaps:
        notes.append(
            (
                "warning",
                "the slice numbers have gaps",
                "consecutive numbers",
                f"missing {_ranges(gaps)}",
                "3D distances across a gap are too small; prefer 2D recipes",
            )
        )
    return notes


def _unmatched(role: str) -> Note:
    return (
        "error",
        f"the {role} mask's slices are not the images'",
        "a picture of the mask for each slice, with the number of the images' pictures",
        "no number in common",
        "rename the mask's pictures as the images', or take them away",
    )


def _ranges(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers[:12]) + (" …" if len(numbers) > 12 else "")

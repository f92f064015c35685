"""Layout `dicom`: `<patient>/…` with series in folders of their own or mixed; a series' modality says its role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from clinfuse_prep.dicom import quiet
from clinfuse_prep.sources.case import SourceCase

ROLE_OF = {"MR": "anatomy", "CT": "companion", "PT": "companion", "NM": "companion"}
NAME_OF = {"CT": "CT", "PT": "PET", "NM": "SPECT"}
SUFFIXES = ("", ".dcm", ".ima")
LEVELS = 4
Series = tuple[str, tuple[Path, ...]]


def matches(source: Path) -> bool:
    """Whether any folder below the source holds a DICOM image."""
    return any(_key(path) for folder in _folders(source) for path in _candidates(folder))


def find(source: Path) -> list[SourceCase]:
    """One case per patient folder: its largest MR series beside its largest CT (else PET, SPECT) series.

    A source whose images lie directly in it is one patient.
    """
    if any(_key(path) for path in _candidates(source)):
        return [_case(source, _series(source))]
    patients = sorted(path for path in source.iterdir() if path.is_dir() and not path.is_symlink())
    return [_case(patient, series) for patient in patients if (series := _series(patient))]


def _folders(source: Path) -> Iterator[Path]:
    """The source and the folders below it, without following links, four levels deep."""
    level = [source]
    for _ in range(LEVELS + 1):
        yield from level
        level = sorted(
            path for folder in level for path in folder.iterdir() if path.is_dir() and not path.is_symlink()
        )


def _candidates(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix.lower() in SUFFIXES)


def _series(patient: Path) -> list[Series]:
    """All series of a patient: modality and files, whichever folders they lie in."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for folder in _folders(patient):
        for path in _candidates(folder):
            if key := _key(path):
                groups.setdefault(key, []).append(path)
    return [(modality, tuple(files)) for (modality, _), files in groups.items()]


def _key(path: Path) -> tuple[str, str] | None:
    """Modality and series of an image file, or None for other files and modalities."""
    try:
        with quiet():
            data = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"]
            )
            modality, series = str(data.get("Modality", "")), str(data.get("SeriesInstanceUID", ""))
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError):
        return None
    return (modality, series) if modality in ROLE_OF else None


def _case(patient: Path, series: list[Series]) -> SourceCase:
    files: dict[str, tuple[Path, ...]] = {}
    kind = "CT"
    notes = []
    for role, modalities in (("anatomy", ("MR",)), ("companion", ("CT", "PT", "NM"))):
        for modality in modalities:
            held = [paths for name, paths in series if name == modality]
            if held:
                files[role] = max(held, key=len)
                kind = NAME_OF.get(modality, kind)
                if len(held) > 1:
                    notes.append(_several(modality, len(held)))
                break
    return SourceCase(
        patient=patient.name,
        name=patient.name,
        files=files,
        modalities=("MR", kind),
        facts={"registration_advised": True},
        notes=tuple(notes),
    )


def _several(modality: str, count: int) -> tuple[str, str, str, str, str]:
    return (
        "warning",
        f"several {modality} series; the largest was taken",
        "one series per role",
        f"{count}",
        "use --layout table to choose another",
    )

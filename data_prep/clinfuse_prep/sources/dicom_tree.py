"""Layout `dicom`: `<patient>/…` with one folder per series; the series' modality says which role it plays."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from clinfuse_prep.sources.case import SourceCase

ROLE_OF = {"MR": "anatomy", "CT": "companion", "PT": "companion", "NM": "companion"}
NAME_OF = {"CT": "CT", "PT": "PET", "NM": "SPECT"}
MOST_LOOKED_AT = 3


def matches(source: Path) -> bool:
    """Whether any folder below the source holds a DICOM image."""
    return any(_modality(folder) for folder in _folders(source))


def find(source: Path) -> list[SourceCase]:
    """One case per patient folder: its largest MR series beside its largest CT (else PET, SPECT) series."""
    cases = []
    for patient in sorted(path for path in source.iterdir() if path.is_dir()) or [source]:
        series = [(modality, folder) for folder in _folders(patient) if (modality := _modality(folder))]
        if series:
            cases.append(_case(patient, series))
    if not cases and (modality := _modality(source)):
        cases.append(_case(source, [(modality, source)]))
    return cases


def _folders(source: Path) -> list[Path]:
    """The source and the folders below it, without following links, three levels deep."""
    found, level = [source], [source]
    for _ in range(4):
        level = sorted(
            path for folder in level for path in folder.iterdir() if path.is_dir() and not path.is_symlink()
        )
        found += level
    return found


def _modality(folder: Path) -> str:
    """The modality of a folder's first readable DICOM file, or ""."""
    looked = 0
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in ("", ".dcm", ".ima") and looked < MOST_LOOKED_AT:
            looked += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
                    modality = str(data.get("Modality", ""))
            except (InvalidDicomError, OSError, ValueError, KeyError, EOFError, AttributeError):
                continue
            if modality in ROLE_OF:
                return modality
    return ""


def _case(patient: Path, series: list[tuple[str, Path]]) -> SourceCase:
    files: dict[str, tuple[Path, ...]] = {}
    kind = "CT"
    notes = []
    for role, modalities in (("anatomy", ("MR",)), ("companion", ("CT", "PT", "NM"))):
        for modality in modalities:
            held = [_files(folder) for name, folder in series if name == modality]
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


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.is_file()))


def _several(modality: str, count: int) -> tuple[str, str, str, str, str]:
    return (
        "warning",
        f"several {modality} series; the largest was taken",
        "one series per role",
        f"{count}",
        "use --layout table to choose another",
    )

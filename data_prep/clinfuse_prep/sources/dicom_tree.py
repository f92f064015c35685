"""Layout `dicom`: `<patient>/…` with series in folders of their own or mixed; a series' modality says its role.

Images of two patients are never paired. A folder stands for one patient if all its images have one PatientID, or none
has any; else each PatientID is a case, and without one each study. Images that lie directly in the source are told
apart so, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from clinfuse_prep.dicom import quiet
from clinfuse_prep.sources.case import Note, SourceCase, told_apart

ROLE_OF = {"MR": "anatomy", "CT": "companion", "PT": "companion", "NM": "companion"}
NAME_OF = {"CT": "CT", "PT": "PET", "NM": "SPECT"}
TAGS = ("PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID")
SUFFIXES = ("", ".dcm", ".ima")
LEVELS = 4


@dataclass(frozen=True)
class Image:
    """An image file and what its header says of it; nothing of that is ever shown."""

    path: Path
    patient: str
    study: str
    modality: str
    series: str

    @property
    def owner(self) -> str:
        """Whose it is: the PatientID, without one the study (else the series), which no two patients share."""
        return self.patient or f"study {self.study or self.series}"


def matches(source: Path) -> bool:
    """Whether any folder below the source holds a DICOM image."""
    return any(next(_images(folder), None) for folder in _folders(source))


def find(source: Path) -> list[SourceCase]:
    """One case per patient: the largest MR series beside the largest CT (else PET, SPECT) series.

    A patient is a folder of the source, or a PatientID (without one a study) where a folder's images do not agree and
    for images that lie directly in the source.
    """
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.is_symlink())
    below = [(folder, [image for sub in _folders(folder) for image in _images(sub)]) for folder in folders]
    direct = list(_images(source))
    notes = [_beside()] if direct and any(images for _, images in below) else []
    found = _cases(source.name, ".", _by_owner(direct), notes)
    for folder, images in below:
        named = any(image.patient for image in images)
        found += _cases(folder.name, folder.name, _by_owner(images) if named else {"": images}, [])
    return told_apart(found)


def _folders(source: Path) -> Iterator[Path]:
    """The source and the folders below it, without following links, four levels deep."""
    level = [source]
    for _ in range(LEVELS + 1):
        yield from level
        level = sorted(
            path for folder in level for path in folder.iterdir() if path.is_dir() and not path.is_symlink()
        )


def _images(folder: Path) -> Iterator[Image]:
    """The images that lie in a folder, not below it."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in SUFFIXES and (image := _image(path)):
            yield image


def _image(path: Path) -> Image | None:
    """What the header says of an image file, or None for other files and modalities."""
    try:
        with quiet():
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
            patient, study, modality, series = (str(data.get(tag) or "").strip() for tag in TAGS)
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError):
        return None
    return Image(path, patient, study, modality, series) if modality in ROLE_OF else None


def _by_owner(images: Iterable[Image]) -> dict[str, list[Image]]:
    groups: dict[str, list[Image]] = {}
    for image in sorted(images, key=lambda image: image.owner):
        groups.setdefault(image.owner, []).append(image)
    return groups


def _cases(
    name: str, place: str, groups: dict[str, list[Image]], notes: list[Note]
) -> list[tuple[SourceCase, str]]:
    """A folder's cases, each with its path below the source; of several patients the owner is part of the name."""
    if len(groups) > 1:
        notes = [*notes, _patients(len(groups))]
    tails = {owner: f"/{owner}" if len(groups) > 1 else "" for owner in groups}
    return [
        (_case(name + tails[owner], images, notes), place + tails[owner])
        for owner, images in groups.items()
        if images
    ]


def _case(name: str, images: list[Image], notes: list[Note]) -> SourceCase:
    files: dict[str, tuple[Path, ...]] = {}
    kind = "CT"
    for role, modalities in (("anatomy", ("MR",)), ("companion", ("CT", "PT", "NM"))):
        for modality in modalities:
            held = _series(images, modality)
            if held:
                files[role] = max(held, key=len)
                kind = NAME_OF.get(modality, kind)
                if len(held) > 1:
                    notes = [*notes, _several(modality, len(held))]
                break
    return SourceCase(
        patient=name,
        name=name,
        files=files,
        modalities=("MR", kind),
        facts={"registration_advised": True},
        notes=tuple(notes),
    )


def _series(images: list[Image], modality: str) -> list[tuple[Path, ...]]:
    """The files of each series of a modality, whichever folders they lie in."""
    groups: dict[str, list[Path]] = {}
    for image in images:
        if image.modality == modality:
            groups.setdefault(image.series, []).append(image.path)
    return [tuple(files) for files in groups.values()]


def _several(modality: str, count: int) -> Note:
    return (
        "warning",
        f"several {modality} series; the largest was taken",
        "one series per role",
        f"{count}",
        "use --layout table to choose another",
    )


def _patients(count: int) -> Note:
    return (
        "warning",
        "the case's folder holds images of several patients, or some without PatientID; each is a case of its own",
        "one PatientID (without PatientID, one study) in a folder",
        f"{count}",
        "if they are one patient's, correct the PatientID, or pair the series in a table (--layout table)",
    )


def _beside() -> Note:
    return (
        "warning",
        "the case's images lie directly in the source, beside patients' folders",
        "each patient's images in a folder of the source",
        "both",
        "move them into the folder of their patient",
    )

"""A case as it lies in the source: which files play which role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROLES = ("anatomy", "companion", "aligned_companion", "brain", "bone", "lesion")
Note = tuple[str, str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class SourceCase:
    """Files of one case.

    Attributes:
        patient: the patient's name at the source; never leaves the link table.
        name: the case's name among this patient's (a session, an id); may equal the patient.
        files: role → files, each a NIfTI or other volume file, a DICOM folder's files, or the picture slices.
        modalities: of anatomy and companion.
        simulated: whether the companion is simulated.
        facts: JSON-able facts to keep in the case's attributes (no names).
        notes: problems seen while finding the files, as (severity, problem, expected, found, todo); a case with an
            "error" is lost.
    """

    patient: str
    name: str
    files: Mapping[str, tuple[Path, ...]]
    modalities: tuple[str, str] = ("MR", "CT")
    simulated: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def told_apart(found: Sequence[tuple[SourceCase, str]]) -> list[SourceCase]:
    """Cases of which no two share their names: folders of one name are other patients, each named by its path.

    Args:
        found: cases and the paths of their folders below the source.
    """
    counts = Counter((case.patient, case.name) for case, _ in found)
    return [
        case if (count := counts[case.patient, case.name]) == 1 else _by_path(case, path, count)
        for case, path in found
    ]


def _by_path(case: SourceCase, path: str, count: int) -> SourceCase:
    note = (
        "warning",
        "several folders have the name of the case's; each is a patient of its own, named by its path",
        "another name for each patient's folder",
        f"{count} of one name",
        "name them by their path below the source in --masks and --split; if they are one patient's, "
        "give a table with patient and case (--layout table)",
    )
    return replace(case, patient=path, name=path, notes=(*case.notes, note))

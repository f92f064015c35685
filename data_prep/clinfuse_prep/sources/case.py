"""A case as it lies in the source: which files play which role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = ("anatomy", "companion", "aligned_companion", "brain", "bone", "lesion")


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
        notes: problems seen while finding the files, as (severity, problem, expected, found, todo).
    """

    patient: str
    name: str
    files: Mapping[str, tuple[Path, ...]]
    modalities: tuple[str, str] = ("MR", "CT")
    simulated: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[tuple[str, str, str, str, str], ...] = ()

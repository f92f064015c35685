"""Which model and which data a sweep saw, as short hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from clinfuse.case import Case

PIECE = 2**20


def model_hash(folder: Path) -> str:
    """Hash (16 hex digits) of every weight and configuration file of a model folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json") and path.is_file() and path.name != "metadata.json":
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def data_hash(cases: Sequence[Case]) -> str:
    """Hash (16 hex digits) of the cases' ids, images and masks as a trial sees them."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(case.case_id.encode())
        digest.update(case.anatomy.tobytes())
        digest.update(case.companion.tobytes())
        for mask in case.masks.values():
            digest.update(mask.tobytes())
    return digest.hexdigest()[:16]

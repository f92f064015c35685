"""Layouts made of folders of volumes: the embedded cohort, SynthRAD, and loose NIfTI pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clinfuse_prep.sources.case import SourceCase, told_apart

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
COHORT_ROLES = {
    "anatomy": "mr",
    "companion": "ct",
    "aligned_companion": "ct_aligned",
    "brain": "brain",
    "bone": "bone",
    "lesion": "lesion",
}


def volume_named(folder: Path, stem: str) -> Path | None:
    """The volume file `<stem>.<suffix>` of a folder, or None."""
    for suffix in VOLUMES:
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    return None


def is_cohort(source: Path) -> bool:
    """Whether the folder was written by `clinfuse cohort`."""
    return (source / "cohort.json").is_file()


def find_cohort(source: Path) -> list[SourceCase]:
    """One case per `sub-…` folder: all masks curated, the aligned companion kept, marked as simulated."""
    about = _json(source / "cohort.json")
    cases = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and path.name.startswith("sub-")):
        truth = _json(folder / "truth.json")
        files = {role: (folder / f"{stem}.nii.gz",) for role, stem in COHORT_ROLES.items()}
        cases.append(
            SourceCase(
                patient=folder.name,
                name=folder.name,
                files=files,
                simulated=bool(about.get("simulated", True)),
                facts={"truth": truth, "one_grid": True},
            )
        )
    return cases


def is_synthrad(source: Path) -> bool:
    """Whether `<task>/<region>/<id>/{mr,ct}` or a part of that tree lies here."""
    return any(volume_named(folder, "mr") for folder in _synthrad_folders(source))


def find_synthrad(source: Path) -> list[SourceCase]:
    """One case per folder with `mr` or `ct`, best both; one without its partner is reported by `prepare_case`."""
    return told_apart(
        [
            (_synthrad(source, folder), folder.relative_to(source).as_posix())
            for folder in _synthrad_folders(source)
        ]
    )


def _synthrad(source: Path, folder: Path) -> SourceCase:
    roles = {"anatomy": "mr", "companion": "ct", "brain": "brain", "bone": "bone", "lesion": "lesion"}
    files = {role: (path,) for role, stem in roles.items() if (path := volume_named(folder, stem))}
    region = folder.parent.name if folder.parent != source.parent else ""
    return SourceCase(patient=folder.name, name=folder.name, files=files, facts={"region": _region(region)})


def _region(name: str) -> str:
    """The body region if it is one of the challenge's words, so that no other folder name is kept."""
    words = {"brain": "brain", "pelvis": "pelvis", "hn": "head and neck", "ab": "abdomen", "th": "thorax"}
    return words.get(name.lower(), "")


def _synthrad_folders(source: Path) -> list[Path]:
    """Folders of volumes, each once, also where links lead to it again."""
    found: dict[Path, Path] = {}
    for depth in ("*", "*/*", "*/*/*"):
        for folder in sorted(source.glob(depth)):
            if folder.is_dir() and any(volume_named(folder, stem) for stem in ("mr", "ct")):
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def find_nifti_pair(source: Path) -> list[SourceCase]:
    """Loose volumes of one folder (or one folder per patient): an MR beside a CT, SPECT or PET by name.

    One without its partner is a case, too, and reported by `prepare_case`.
    """
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [(case, folder.relative_to(source).as_posix()) for folder in folders if (case := _loose(folder))]
    return told_apart(found)


def is_nifti_pair(source: Path) -> bool:
    """Whether any folder holds a loose pair."""
    return any({"anatomy", "companion"} <= case.files.keys() for case in find_nifti_pair(source))


def _loose(folder: Path) -> SourceCase | None:
    anatomy = _first(folder, ("mr", "mri", "t1", "t1w", "t2", "t2w", "flair", "pd"))
    companions = [
        (kind, path)
        for kind, stems in (("CT", ("ct", "ct_hu")), ("SPECT", ("spect",)), ("PET", ("pet",)))
        if (path := _first(folder, stems)) is not None
    ]
    if anatomy is None and not companions:
        return None
    kind, companion = companions[0] if companions else ("CT", None)
    files = {role: (path,) for role, path in (("anatomy", anatomy), ("companion", companion)) if path}
    for role, stems in (("brain", ("brain", "brainmask")), ("bone", ("bone",)), ("lesion", ("lesion",))):
        if (path := _first(folder, stems)) is not None:
            files[role] = (path,)
    return SourceCase(patient=folder.name, name=folder.name, files=files, modalities=("MR", kind))


def unread(source: Path, cases: list[SourceCase]) -> int:
    """How many folders below the source hold volumes, none of which belongs to a case."""
    used = {path.parent for case in cases for paths in case.files.values() for path in paths}
    held = {path.parent for path in source.rglob("*") if path.name.endswith(VOLUMES) and path.is_file()}
    return len(held - used)


def _first(folder: Path, stems: tuple[str, ...]) -> Path | None:
    return next((path for stem in stems if (path := volume_named(folder, stem)) is not None), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}

"""Layout `bids`: `sub-<id>[/ses-<id>]/{anat,ct,pet}/…`, masks in derivatives with `label-` or `desc-` entities."""

from __future__ import annotations

from pathlib import Path

from clinfuse_prep.sources.case import SourceCase

ANATOMY = ("T1w", "T2w", "FLAIR", "PDw", "T1rho", "T2starw")
COMPANION = (
    ("ct", "ct", "CT"),
    ("pet", "pet", "PET"),
    ("spect", "spect", "SPECT"),
    ("pet", "spect", "SPECT"),
)
LABELS = {
    "brain": ("brain",),
    "bone": ("bone", "skull"),
    "lesion": ("lesion", "tumor", "tumour", "stroke", "haemorrhage", "hemorrhage"),
}
SUFFIXES = (".nii.gz", ".nii")


def matches(source: Path) -> bool:
    """Whether there are `sub-…` folders with an `anat` folder, directly or inside sessions."""
    return any(_anat(session) for subject in _subjects(source) for session in _sessions(subject))


def find(source: Path) -> list[SourceCase]:
    """One case per subject and session that has an anatomy image, a companion, or both."""
    cases = []
    for subject in _subjects(source):
        for session in _sessions(subject):
            case = _case(source, subject, session)
            if case is not None:
                cases.append(case)
    return cases


def _subjects(source: Path) -> list[Path]:
    return sorted(path for path in source.glob("sub-*") if path.is_dir())


def _sessions(subject: Path) -> list[Path]:
    return sorted(path for path in subject.glob("ses-*") if path.is_dir()) or [subject]


def _anat(session: Path) -> Path | None:
    folder = session / "anat"
    return next((path for suffix in ANATOMY if (path := _ending(folder, suffix))), None)


def _ending(folder: Path, suffix: str) -> Path | None:
    """The first image of a folder whose BIDS suffix it is; space- and contrast-free names come first."""
    if not folder.is_dir():
        return None
    found = [path for end in SUFFIXES for path in folder.glob(f"*_{suffix}{end}")]
    return min(found, key=lambda path: (len(path.name), path.name), default=None)


def _case(source: Path, subject: Path, session: Path) -> SourceCase | None:
    anatomy = _anat(session)
    companions = [
        (kind, path)
        for folder, suffix, kind in COMPANION
        if (path := _ending(session / folder, suffix)) is not None
    ]
    if anatomy is None and not companions:
        return None
    kind = companions[0][0] if companions else "CT"
    files = {"anatomy": (anatomy,) if anatomy else (), "companion": (companions[0][1],) if companions else ()}
    for roi, labels in LABELS.items():
        if (mask := _mask(source, subject, session, labels)) is not None:
            files[roi] = (mask,)
    notes = [] if len(companions) < 2 else [_several(kind, len(companions))]
    name = subject.name if session == subject else f"{subject.name}_{session.name}"
    return SourceCase(
        patient=subject.name, name=name, files=files, modalities=("MR", kind), notes=tuple(notes)
    )


def _mask(source: Path, subject: Path, session: Path, labels: tuple[str, ...]) -> Path | None:
    """A mask of the subject and session among all derivatives (and beside the raw images)."""
    inside = session.relative_to(source)
    roots = [session, *sorted(source.glob(f"derivatives/*/{inside.as_posix()}"))]
    roots.append(source / "derivatives" / inside)
    for root in roots:
        for end in SUFFIXES:
            for path in sorted(root.rglob(f"{subject.name}_*_mask{end}")):
                entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
                words = {entities.get("label", "").lower(), entities.get("desc", "").lower()}
                if words & set(labels):
                    return path
    return None


def _several(kind: str, count: int) -> tuple[str, str, str, str, str]:
    return (
        "info",
        "several companion images; one was taken",
        "one companion",
        f"{count}, of which the {kind}",
        "use --layout table to choose another",
    )

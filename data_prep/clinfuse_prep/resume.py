"""What a dataset holds from before: which cases stay, which splits bind, what is refused before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinfuse.console import counted, progress, say
from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse_prep.batch import Job, Outcome
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.pseudonym import KEY_FILE, Link
from clinfuse_prep.read import image_digest
from clinfuse_prep.store import CaseStore

Held = Mapping[str, Mapping[str, Any]]


def held_cases(store: CaseStore, *, resume: bool, overwrite: bool) -> Held:
    """Attributes of the cases that are there to go on from, by id; none where they are to be overwritten.

    Raises:
        ConfigError: cases are there, and neither is asked for or they cannot be overwritten.
    """
    there = ((name, store.attributes(name)) for name in store.case_ids()) if store.exists() else ()
    held = {name: attrs for name, attrs in there if attrs}
    if held and overwrite and store.local is None:
        raise ConfigError("--overwrite works on local datasets", expected="a local path", found="a URL")
    if held and not (resume or overwrite):
        raise ConfigError(
            "the dataset exists",
            expected="a new name, --resume or --overwrite",
            found=f"{counted(len(held), 'case')} in it",
            todo="--resume keeps finished cases, --overwrite removes them",
        )
    return {} if overwrite else held


def check_key(folder: Path, held: Held) -> None:
    """A new key would name the same patients anew, and put them in the dataset, and in its splits, twice.

    Raises:
        ConfigError: cases are there, but no key.
    """
    if held and not (folder / KEY_FILE).is_file():
        raise ConfigError(
            "the key that named the dataset's cases is missing",
            expected=f"{KEY_FILE} in the folder of --key, or else beside the dataset",
            found=f"none, and {counted(len(held), 'case')} in the dataset",
            todo="state the folder with --key, or prepare all anew with --overwrite",
        )


def check_renamed(links: Mapping[str, Link], held: Held, jobs: Sequence[Job]) -> None:
    """A folder that got a namesake, or images of a second patient, since the dataset was made has another name now: as
    a new patient it would be in the dataset, and in its splits, twice.

    Raises:
        ConfigError: cases of the dataset are missing in the source, and new ones have names that extend or end theirs.
    """
    asked = {job.case_id for job in jobs}
    before = {link[2] for name, link in links.items() if name in held and name not in asked}
    new = [job.source.patient for job in jobs if job.case_id not in held]
    renamed = [
        name for name in before if any(n.startswith(f"{name}/") or n.endswith(f"/{name}") for n in new)
    ]
    if renamed:
        raise ConfigError(
            "patients of the dataset have other names in the source now",
            expected="the names that they were prepared by",
            found=f"{counted(len(renamed), 'patient')} whose folder has namesakes now, or holds several patients",
            todo="prepare all anew with --overwrite, or give patient and case in a table (--layout table)",
        )


def held_splits(held: Held) -> dict[str, str]:
    """Patient's pseudonym → split.

    Raises:
        ConfigError: patients have cases in two splits.
    """
    splits = {str(attrs["patient"]): str(attrs["split"]) for attrs in held.values()}
    torn = {attrs["patient"] for attrs in held.values() if attrs["split"] != splits[attrs["patient"]]}
    if torn:
        raise ConfigError(
            "the dataset has patients in two splits",
            expected="all cases of a patient in one",
            found=f"{counted(len(torn), 'patient')} in two",
            todo="prepare all anew with --overwrite",
        )
    return splits


def check_splits(asked: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Cases that stay keep their split, so a file of splits has to agree with it.

    Args:
        asked, known: patient → split, by the file and by the dataset.

    Raises:
        ConfigError: they differ.
    """
    moved = [patient for patient, split in known.items() if asked[patient] != split]
    if moved:
        raise ConfigError(
            "the split file contradicts the dataset",
            expected="the split that patients of the dataset have",
            found=f"{counted(len(moved), 'patient')} in another",
            todo="place them as before, or prepare all anew with --overwrite",
        )


def finished(attrs: Mapping[str, Any], config: PrepConfig) -> bool:
    """Whether a case is there ({}: it is not) and was made with the same choices.

    The comparison of brain masks changes no voxel, and is off where its package is missing: it counts as none.
    """
    return bool(attrs) and replace(PrepConfig.from_dict(attrs["prep"]), compare=config.compare) == config


def unfinished(jobs: Sequence[Job], held: Held, config: PrepConfig) -> tuple[list[Job], list[str]]:
    """Jobs whose cases are not there, or were made with other choices or of other files.

    Returns:
        The jobs, and the ids of the cases that were made with the same choices of other files.
    """
    same = [job for job in jobs if finished(held.get(job.case_id, {}), config)]
    changed = [
        job.case_id
        for job in progress(same, total=len(same), label="sources")
        if not _same_sources(job, held[job.case_id]["source_hash"])
    ]
    if changed:
        number = counted(len(changed), "case")
        say(f"prepared anew, as their images or masks are other files than before: {number}")
    kept = {job.case_id for job in same} - set(changed)
    return [job for job in jobs if job.case_id not in kept], changed


def _same_sources(job: Job, known: Mapping[str, str]) -> bool:
    """Whether a job's files are, role by role, those of the digests; what cannot be read is not."""
    files = {role: paths for role, paths in job.source.files.items() if paths}
    try:
        return files.keys() == known.keys() and all(
            image_digest(paths, role=role, case=job.case_id) == known[role] for role, paths in files.items()
        )
    except (OSError, ClinfuseError):
        return False


def check_corrected(held: Held, todo: Iterable[str]) -> None:
    """Masks that a person corrected are never prepared away.

    Args:
        todo: ids of the cases that are to be prepared.

    Raises:
        ConfigError: some of them hold corrected masks.
    """
    corrected = [name for name in todo if held.get(name, {}).get("masks_before")]
    if corrected:
        raise ConfigError(
            "corrected masks would be lost, as their cases were made with other choices or of other files",
            expected="the choices and files they were made with",
            found=f"corrected masks in {counted(len(corrected), 'case')} of {counted(len(held), 'case')}",
            todo="resume with those of before, or: clinfuse masks export, prep --overwrite, masks import",
        )


def remove_failed(store: CaseStore, held: Held, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Remove what is there of cases that could not be prepared again: it is not what was asked for now."""
    failed = [o.case_id for o in outcomes if o.case_id in held and (o.row or {}).get("state") != "ok"]
    for name in failed:
        store.remove(name)
    return [
        Finding(
            case=name,
            severity="warning",
            problem="the case was removed from the dataset",
            expected="cases made of the files that are there, with one set of choices",
            found="one made of other files or with other choices, which could not be made anew",
            todo="mend the case's images, or prepare with the choices of before; then --resume",
        )
        for name in failed
    ]

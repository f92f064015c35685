"""One case from its files: the same steps for a case of a cohort and for a pair of one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinfuse.case import ROIS, Case
from clinfuse.errors import GeometryError, InputError
from clinfuse_prep.checks import guessed_kind
from clinfuse_prep.config import PrepConfig
from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid
from clinfuse_prep.raw import RawImage
from clinfuse_prep.read import Files, read_image
from clinfuse_prep.sources.case import SourceCase
from clinfuse_prep.steps import Prepared, Task, run_steps


def prepare_case(
    source: SourceCase, config: PrepConfig, *, case_id: str, patient: str, split: str
) -> Prepared:
    """Prepare one case of a source.

    Args:
        source: its files.
        case_id, patient: pseudonyms. split: "train", "val" or "test".

    Raises:
        InputError, GeometryError: the case cannot be used; the message names the pseudonym only.
    """
    for severity, problem, expected, found, todo in source.notes:
        if severity == "error":
            raise InputError(problem, expected=expected, found=found, case=case_id, todo=todo)
    for role in ("anatomy", "companion"):
        if not source.files.get(role):
            raise InputError(
                f"the {role} image is missing",
                expected=f"an image pair ({' and '.join(source.modalities)})",
                found="one image without its partner",
                case=case_id,
                todo="add the missing image or leave the case out",
            )
    images = {
        role: read_image(list(paths), role=_words(role), case=case_id, config=config)
        for role, paths in source.files.items()
        if paths
    }
    if source.facts.get("one_grid"):
        _check_one_grid(images, case_id)
    facts = {key: value for key, value in source.facts.items() if key != "one_grid"}
    simulated = source.simulated or _simulated(images)
    attrs = {"patient": patient, "split": split, "simulated": simulated, **facts}
    task = Task(
        images=images,
        modalities=source.modalities,
        config=config,
        case=case_id,
        simulated=simulated,
    )
    return run_steps(task, attrs, source_notes(source, case_id))


def source_notes(source: SourceCase, case_id: str) -> list[Finding]:
    """What was noticed while the case's files were found, as findings; errors are raised by `prepare_case`."""
    return [
        Finding(case=case_id, severity=s, problem=p, expected=e, found=f, todo=t)
        for s, p, e, f, t in source.notes
        if s != "error"
    ]


def prepare_pair(
    anatomy: Files,
    companion: Files,
    *,
    brain: Files | None = None,
    bone: Files | None = None,
    lesion: Files | None = None,
    config: PrepConfig | None = None,
    case_id: str | None = None,
    modalities: tuple[str, str] | None = None,
) -> Case:
    """Prepare one pair outside any dataset, as `clinfuse fuse` and the service do.

    Args:
        anatomy, companion: a NIfTI, DICOM folder or picture slice each (path, list of paths, or RawImage).
        brain, bone, lesion: optional masks from files; they win over automatic ones.
        case_id: pseudonym to use; "case" if None.
        modalities: of both images; None infers the companion's ("CT", or "NM" for SPECT and PET).

    Returns:
        The case on the anatomy image's grid; `attrs["findings"]` lists what was noticed, `attrs["simulated"]` is
        true when the companion's file is marked as simulated (the embedded cohort's are).

    Raises:
        InputError, GeometryError: the pair cannot be used.
    """
    files = {"anatomy": anatomy, "companion": companion, "brain": brain, "bone": bone, "lesion": lesion}
    return prepare_files(files, config=config, case_id=case_id, modalities=modalities).case


def prepare_files(
    files: Mapping[str, Files | None],
    *,
    config: PrepConfig | None = None,
    case_id: str | None = None,
    modalities: tuple[str, str] | None = None,
) -> Prepared:
    """As `prepare_pair`, by role, with findings beside the case."""
    config, name = config or PrepConfig(), case_id or "case"
    images = {
        role: read_image(given, role=_words(role), case=name, config=config)
        for role, given in files.items()
        if given is not None
    }
    notes: list[Finding] = []
    if modalities is None:
        kind, notes = guessed_kind(images["companion"], name)
        modalities = ("MR", kind)
    simulated = _simulated(images)
    attrs: dict[str, Any] = {"patient": name, "split": "test", "simulated": simulated}
    task = Task(images=images, modalities=modalities, config=config, case=name, simulated=simulated)
    return run_steps(task, attrs, notes)


def _words(role: str) -> str:
    """How messages call the image of a role: masks by that name."""
    return f"{role} mask" if role in ROIS else role.replace("_", " ")


def _simulated(images: Mapping[str, RawImage]) -> bool:
    """Whether any companion's file carries the mark of a simulated image."""
    return any(role in images and images[role].simulated for role in ("companion", "aligned_companion"))


def _check_one_grid(images: Mapping[str, RawImage], case: str) -> None:
    anatomy = images["anatomy"].grid
    for role, image in images.items():
        if not image.grid.same_as(anatomy, tolerance_mm=0.05):
            raise GeometryError(
                f"the {role} image has an unequal shape or grid",
                expected=f"shape {anatomy.shape} at {_mm(anatomy)}",
                found=f"shape {image.grid.shape} at {_mm(image.grid)}",
                case=case,
                todo="export all images of the case on one grid",
            )


def _mm(grid: Grid) -> str:
    return "×".join(f"{s:.3g}" for s in grid.spacing) + " mm"

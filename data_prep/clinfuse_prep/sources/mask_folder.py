"""Masks of a separate folder, `<case name>/{brain,bone,lesion}.nii.gz`, given to the cases of a source by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clinfuse.case import ROIS
from clinfuse.errors import ConfigError
from clinfuse_prep.findings import Finding
from clinfuse_prep.sources.case import SourceCase
from clinfuse_prep.sources.folders import unread, volume_named

NAMES = (
    "a folder for each case, named as the case is at the source (its folder, or the table's `case`; "
    "`patient/case` where patients share a case's name), with brain, bone or lesion .nii.gz in it"
)
RENAME = "rename the folders; masks that `clinfuse masks export` wrote go back by `clinfuse masks import`"


def with_masks(cases: Sequence[SourceCase], folder: Path) -> tuple[list[SourceCase], list[Finding]]:
    """The cases with the folder's masks, which win over all others, and a warning of masks that are no case's.

    Raises:
        ConfigError: no such folder, or it has a mask for no case.
    """
    if not folder.is_dir():
        raise ConfigError("--masks is not usable", expected="auto, or a folder of masks", found="neither")
    count = Counter(case.name for case in cases)
    masks = [
        _masks(folder, case.name if count[case.name] == 1 else f"{case.patient}/{case.name}")
        for case in cases
    ]
    if not any(masks):
        raise ConfigError("--masks has a mask for no case", expected=NAMES, found="none", todo=RENAME)
    done = [replace(case, files={**case.files, **own}) for case, own in zip(cases, masks, strict=True)]
    left = unread(folder, done)
    if not left:
        return done, []
    warning = Finding(
        case="",
        severity="warning",
        problem="some folders of --masks are no case's, and were not read",
        expected=NAMES,
        found=f"{left} of other names",
        todo=RENAME,
    )
    return done, [warning]


def _masks(folder: Path, name: str) -> dict[str, tuple[Path, ...]]:
    """The mask files of a case's name by ROI; a name that leads out of the folder has none."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return {}
    return {roi: (path,) for roi in ROIS if (path := volume_named(folder / name, roi))}

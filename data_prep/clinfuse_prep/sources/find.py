"""Which layout a source has, and the cases in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clinfuse.errors import ConfigError, InputError
from clinfuse_prep.findings import Finding
from clinfuse_prep.sources import bids, dicom_tree, folders, pairs, table
from clinfuse_prep.sources.case import SourceCase


@dataclass(frozen=True)
class Layout:
    """How a kind of source is recognised and read."""

    matches: Callable[[Path], bool]
    find: Callable[[Path], list[SourceCase]]


LAYOUTS: dict[str, Layout] = {
    "table": Layout(table.matches, table.find),
    "cohort": Layout(folders.is_cohort, folders.find_cohort),
    "pairs": Layout(pairs.matches, pairs.find),
    "bids": Layout(bids.matches, bids.find),
    "synthrad": Layout(folders.is_synthrad, folders.find_synthrad),
    "nifti-pair": Layout(folders.is_nifti_pair, folders.find_nifti_pair),
    "dicom": Layout(dicom_tree.matches, dicom_tree.find),
}


def find_cases(source: Path, layout: str = "auto") -> tuple[str, list[SourceCase], list[Finding]]:
    """The cases of a source.

    Args:
        source: a folder (or, for some layouts, a file).
        layout: a name of `LAYOUTS`, or "auto" to try each in order.

    Returns:
        The layout's name, the cases sorted by name, and findings about the source as a whole.

    Raises:
        InputError: no such source, or no case in it. ConfigError: unknown layout.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError("unknown layout", expected=f"auto or one of {', '.join(LAYOUTS)}", found=layout)
    if not source.exists():
        raise InputError("the source does not exist", expected="a folder of images", todo="check the path")
    names = list(LAYOUTS) if layout == "auto" else [layout]
    if source.is_file():
        names = [name for name in names if name == "table"]
    for name in names:
        if layout == "auto" and not LAYOUTS[name].matches(source):
            continue
        cases = LAYOUTS[name].find(source)
        if cases:
            return name, cases, _unread(name, source, cases)
    raise InputError(
        "no case was found in the source",
        expected=f"the layout {layout}" if layout != "auto" else f"one of the layouts {', '.join(LAYOUTS)}",
        todo="see the layouts in `clinfuse prep --help`, or name one with --layout",
    )


def _unread(layout: str, source: Path, cases: list[SourceCase]) -> list[Finding]:
    """A warning where a layout that goes by file names has passed over folders of volumes."""
    count = folders.unread(source, cases) if layout in ("synthrad", "nifti-pair") else 0
    if not count:
        return []
    warning = Finding(
        case="",
        severity="warning",
        problem="some folders of images were not read",
        expected=f"file names as in the layout {layout}, such as mr.nii.gz and ct.nii.gz",
        found=f"{count} with other names only",
        todo="rename their files, name another --layout, or give a table of paths (CSV)",
    )
    return [warning]

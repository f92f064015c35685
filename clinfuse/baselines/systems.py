"""Every system that the proposal names, and which method here stands for it, or why none can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOT_TRAINED = "no trained folder of it among the methods; clinfuse train-baseline makes one"


@dataclass(frozen=True, kw_only=True)
class System:
    """A system of the literature.

    Attributes:
        name: as published.
        named: where the proposal names it, or "" for a further method of the field.
        kind: the learned baseline that reimplements its idea (`clinfuse.baselines.learned.KINDS`), or "".
        why: why no row can be built, where there is no kind.
    """

    name: str
    named: str
    kind: str = ""
    why: str = ""


SYSTEMS = (
    System(name="TTTFusion", named="Section 6", kind="test_time"),
    System(name="FusionDiff", named="reference 10", kind="fusiondiff"),
    System(name="Diff-IF", named="reference 11", kind="diffif"),
    System(
        name="UniMIE, a diffusion model for universal medical image enhancement",
        named="reference 8",
        why="it restores one degraded image; it takes no second modality and defines no fusion",
    ),
    System(
        name="diffusion models for denoising, reconstruction and translation",
        named="reference 9",
        why="a review of methods for one image each; it describes no fusion system to rebuild",
    ),
    System(
        name="TotalSegmentator CT and MRI",
        named="references 4 and 5",
        why="segmentation, not fusion: it serves as a source of masks in clinfuse prep",
    ),
    System(name="DDFM", named="", kind="ddfm"),
    System(name="IFCNN, EMFusion kind", named="", kind="conv"),
)


def system_rows(methods: Mapping[str, str]) -> list[dict[str, str]]:
    """One line per system: its row in a table of methods, or why it has none.

    Args:
        methods: learned kind → label of the method in the table.

    Returns:
        Lines with system, named in the proposal, row, why not.
    """
    lines = []
    for system in SYSTEMS:
        label = methods.get(system.kind, "") if system.kind else ""
        why = "" if label else (system.why or NOT_TRAINED)
        named = system.named or "further method"
        lines.append({"system": system.name, "proposal": named, "row": label or "none", "why not": why})
    return lines

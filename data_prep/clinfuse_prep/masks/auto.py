"""The automatic brain mask: which method for which images, and whether CT and MR agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clinfuse_prep.findings import Finding
from clinfuse_prep.geometry import Grid
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.brain import brain_from_ct
from clinfuse_prep.masks.brain_mr import brain_classical
from clinfuse_prep.masks.deepbet import brain_deepbet, deepbet_installed
from clinfuse_prep.masks.morphology import Mask
from clinfuse_prep.masks.totalsegmentator import segment

LEAST_AGREEMENT = 0.8
LEAST_PLANES = 8


@dataclass(frozen=True, kw_only=True)
class BrainMask:
    """A brain mask (D, H, W) bool, the method that made it, what was noticed, and CT against MR as Dice."""

    mask: Mask
    method: str
    findings: list[Finding] = field(default_factory=list)
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class BrainInputs:
    """What a brain mask can be made from.

    Attributes:
        anatomy: (D, H, W) MR, any unit. ct: (D, H, W) HU or 8-bit greys on the same grid, or None.
        bone, head: (D, H, W) of the CT, if known.
    """

    anatomy: NDArray[np.float32]
    grid: Grid
    case: str
    ct: NDArray[np.float32] | None = None
    grey8: bool = False
    bone: NDArray[np.uint8] | None = None
    head: Mask | None = None


def brain_mask(inputs: BrainInputs, method: str, *, compare: bool) -> BrainMask:
    """Make a brain mask.

    Args:
        method: a name of `config.BRAIN_METHODS`; "auto" takes the CT's intracranial space, and without CT deepbet
            where it is installed (whole heads), else the classical way.
        compare: with "auto" and a CT, make a second mask from the MR by deepbet and flag Dice below 0.8.

    Raises:
        MissingPartError: the method's optional package is missing.
    """
    if method == "auto":
        return _auto(inputs, compare=compare)
    if method == "ct" and inputs.ct is None:
        method = "mr"
    return BrainMask(mask=METHODS[method](inputs), method=NAMES[method])


def _auto(inputs: BrainInputs, *, compare: bool) -> BrainMask:
    learned = deepbet_installed() and inputs.grid.shape[0] >= LEAST_PLANES
    from_mr = "deepbet" if learned else "mr"
    if inputs.ct is None:
        return BrainMask(mask=METHODS[from_mr](inputs), method=NAMES[from_mr])
    mask = _ct(inputs)
    if not mask.any():
        finding = Finding(
            case=inputs.case,
            severity="warning",
            problem="the CT shows no intracranial space; the brain mask was made from the MR",
            expected="a skull around the brain",
            todo="look at its outline on the contact sheet",
        )
        return BrainMask(mask=METHODS[from_mr](inputs), method=NAMES[from_mr], findings=[finding])
    if not (compare and learned):
        return BrainMask(mask=mask, method=NAMES["ct"])
    agreement = dice(mask, METHODS["deepbet"](inputs))
    findings = [] if agreement >= LEAST_AGREEMENT else [_disagree(inputs.case, agreement)]
    return BrainMask(mask=mask, method=NAMES["ct"], findings=findings, agreement=agreement)


def dice(a: Mask, b: Mask) -> float:
    """2|A∩B| / (|A| + |B|), 1 for two empty masks."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def _disagree(case: str, agreement: float) -> Finding:
    return Finding(
        case=case,
        severity="warning",
        problem="brain masks from CT and MR disagree",
        expected=f"Dice of at least {LEAST_AGREEMENT}",
        found=f"{agreement:.2f}",
        todo="check the alignment and the outlines; try --register, or correct with clinfuse masks",
    )


def _ct(inputs: BrainInputs) -> Mask:
    assert inputs.ct is not None
    spacing = inputs.grid.spacing
    if inputs.bone is not None:
        skull = inputs.bone > 0
    else:
        skull = bone_from_ct(inputs.ct, spacing, grey8=inputs.grey8, head=inputs.head)[0]
    return brain_from_ct(inputs.ct, skull, spacing, grey8=inputs.grey8, head=inputs.head)


def _mr(inputs: BrainInputs) -> Mask:
    return brain_classical(inputs.anatomy, inputs.grid.spacing)


def _deepbet(inputs: BrainInputs) -> Mask:
    return brain_deepbet(inputs.anatomy, inputs.grid.spacing, inputs.case)


def _totalsegmentator(inputs: BrainInputs) -> Mask:
    if inputs.ct is not None and not inputs.grey8:
        return segment(inputs.ct, inputs.grid, "CT")
    return segment(inputs.anatomy, inputs.grid, "MR")


METHODS: dict[str, Callable[[BrainInputs], Mask]] = {
    "ct": _ct,
    "mr": _mr,
    "deepbet": _deepbet,
    "totalsegmentator": _totalsegmentator,
}
NAMES = {
    "ct": "ct-intracranial",
    "mr": "mr-classical",
    "deepbet": "deepbet",
    "totalsegmentator": "totalsegmentator",
}

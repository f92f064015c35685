"""What each tissue looks like: MR signal under three contrasts and CT density in HU, and how they are painted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clinfuse.case import FloatArray

CONTRASTS = ("T1", "T1c", "T2")

# tissue: (T1, T2, HU); T1c, i.e. T1 after contrast agent, is T1 except where `ENHANCING` says otherwise.
TISSUES: dict[str, tuple[float, float, float]] = {
    "air": (0.02, 0.02, -1000.0),
    "skin": (0.42, 0.30, 60.0),
    "fat": (1.12, 0.62, -98.0),
    "muscle": (0.44, 0.22, 55.0),
    "tendon": (0.20, 0.12, 70.0),
    "mucosa": (0.48, 0.85, 40.0),
    "cortical": (0.06, 0.05, 1480.0),
    "marrow": (0.60, 0.34, 640.0),
    "dense": (0.05, 0.04, 1780.0),
    "csf": (0.17, 1.02, 7.0),
    "grey": (0.64, 0.56, 37.0),
    "white": (0.88, 0.39, 29.0),
    "dura": (0.42, 0.22, 48.0),
    "venous": (0.20, 0.12, 56.0),
    "vitreous": (0.20, 1.00, 8.0),
    "sclera": (0.45, 0.22, 45.0),
    "lens": (0.50, 0.25, 85.0),
    "calcium": (0.30, 0.15, 420.0),
}
ENHANCING = {"mucosa": 0.85, "venous": 1.10, "dura": 0.70, "muscle": 0.50}


def signal(tissue: str, contrast: str) -> float:
    """MR signal of a tissue, white matter on T1 being 0.88."""
    if contrast == "T1c" and tissue in ENHANCING:
        return ENHANCING[tissue]
    return TISSUES[tissue][1 if contrast == "T2" else 0]


def pick(contrast: str, t1: float, t1c: float, t2: float) -> float:
    """The value for the contrast at hand."""
    return {"T1": t1, "T1c": t1c, "T2": t2}[contrast]


@dataclass(kw_only=True)
class Canvas:
    """The noise-free head being painted, back to front.

    Attributes:
        contrast: one of `CONTRASTS`.
        mr: (D, H, W) MR signal; hu: (D, H, W) CT in HU; bone: (D, H, W) fraction of mineralised bone in [0, 1].
    """

    contrast: str
    shape: tuple[int, int, int]
    mr: FloatArray = field(init=False)
    hu: FloatArray = field(init=False)
    bone: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.mr = np.full(self.shape, signal("air", self.contrast), np.float32)
        self.hu = np.full(self.shape, TISSUES["air"][2], np.float32)
        self.bone = np.zeros(self.shape, np.float32)

    def paint(
        self,
        fraction: FloatArray,
        mr: float | FloatArray,
        hu: float | FloatArray,
        bone: float | FloatArray = 0.0,
    ) -> None:
        """Cover `fraction` (D, H, W) in [0, 1] of each voxel with a material."""
        for layer, value in ((self.mr, mr), (self.hu, hu), (self.bone, bone)):
            change = np.subtract(np.asarray(value, np.float32), layer)
            change *= fraction
            np.add(layer, change, out=layer)

    def tissue(self, fraction: FloatArray, name: str, *, bone: float = 0.0) -> None:
        """Cover `fraction` of each voxel with a tissue of the table."""
        self.paint(fraction, signal(name, self.contrast), TISSUES[name][2], bone)

"""DICOM slices on a regular grid: gantry tilt undone, unequal distances interpolated, each with a note.

Legend: positions are LPS+ mm; a note is (severity, problem, expected, found, todo).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EVEN_MM = 0.05
COMMON_SHARE = 0.1
LEAST_SHIFT_MM = 0.1
Note = tuple[str, str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class SliceHead:
    """Geometry of one slice: where it lies, in LPS+ mm, which file holds it, and whose it is (see RawImage.subject)."""

    path: Path
    series: str
    modality: str
    subject: str
    rows: int
    columns: int
    spacing: tuple[float, float]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    position: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the slice."""
        return np.cross(self.across, self.down)

    @property
    def height(self) -> float:
        """Position along the normal in mm."""
        return float(self.position @ self.normal)


def untilted(
    slices: NDArray[np.float32], series: list[SliceHead], padding: float
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[Note]]:
    """Slices shifted in-plane to a common origin, that origin in LPS+ mm, and a note if there was a tilt."""
    first = series[0]
    rise = np.array([head.height - first.height for head in series])
    moved = np.array([head.position - first.position for head in series])
    down = moved @ first.down / first.spacing[0]
    right = moved @ first.across / first.spacing[1]
    widest = max(np.ptp(down) * first.spacing[0], np.ptp(right) * first.spacing[1])
    if widest < LEAST_SHIFT_MM or len(series) < 2:
        return slices, first.position, []
    top, left = int(np.floor(down.min())), int(np.floor(right.min()))
    height = slices.shape[1] + int(np.ceil(down.max())) - top
    width = slices.shape[2] + int(np.ceil(right.max())) - left
    out = np.full((len(series), height, width), padding, np.float32)
    for index, plane in enumerate(slices):
        canvas = np.full((height, width), padding, np.float32)
        canvas[: plane.shape[0], : plane.shape[1]] = plane
        offset = (down[index] - top, right[index] - left)
        out[index] = ndimage.shift(canvas, offset, order=1, mode="constant", cval=padding)
    origin = first.position + first.down * first.spacing[0] * top + first.across * first.spacing[1] * left
    angle = np.rad2deg(np.arctan2(widest, np.ptp(rise)))
    note = ("info", "the gantry was tilted; the shear was undone", "", f"{angle:.1f}°", "")
    return out, origin, [note]


def even(
    slices: NDArray[np.float32], heights: NDArray[np.float64]
) -> tuple[NDArray[np.float32], float, list[Note]]:
    """Slices at equal distances, that distance in mm, and a note if they had to be interpolated."""
    if len(heights) < 2:
        return (
            slices,
            1.0,
            [("info", "a single slice carries no spacing", "several slices", "1 mm assumed", "")],
        )
    gaps = np.diff(heights)
    if np.ptp(gaps) < EVEN_MM:
        return slices, float(gaps.mean()), []
    step = float(min(gap for gap in gaps if (np.abs(gaps - gap) < EVEN_MM).mean() >= COMMON_SHARE))
    count = int((heights[-1] - heights[0]) / step + 1e-3) + 1
    targets = heights[0] + step * np.arange(count)
    upper = np.clip(np.searchsorted(heights, targets), 1, len(heights) - 1)
    share = np.clip((targets - heights[upper - 1]) / gaps[upper - 1], 0, 1).astype(np.float32)[:, None, None]
    even = slices[upper - 1] * (1 - share) + slices[upper] * share
    kinds = sorted({round(float(gap), 1) for gap in gaps})
    found = ", ".join(f"{int((np.abs(gaps - kind) < 0.06).sum())} of {kind:g} mm" for kind in kinds[:6])
    note = (
        "warning",
        "slices at unequal distances were interpolated",
        "one distance",
        found,
        f"through-plane detail differs along the head; the grid has {step:g} mm",
    )
    return even, step, [note]

"""One picture of a whole dataset: for each case a strip of slices of both images with ROI outlines."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse.colour import join_colour
from clinfuse_prep.store import CaseStore

TILE, STRIP, BAR = 128, 6, 16
LETTERS = (230, 230, 230)
COLOURS = {"brain": (80, 220, 120), "bone": (255, 170, 60), "lesion": (255, 70, 90)}
BRAIN_WINDOW_HU = (-20.0, 100.0)


def contact_sheet(store: CaseStore, case_ids: Sequence[str]) -> bytes:
    """PNG bytes: two rows a case (anatomy, companion), six axial slices through its brain, feet view: the
    patient's right on the left. A pseudo-colour companion is shown in its colours.

    Args:
        case_ids: which cases; read one at a time.
    """
    blocks = [_block(store.read(case_id)) for case_id in case_ids]
    if not blocks:
        blocks = [np.zeros((TILE, TILE * STRIP, 3), np.uint8)]
    buffer = BytesIO()
    about = PngInfo()
    about.add_text("Description", f"clinfuse contact sheet. {RESEARCH_USE}")
    Image.fromarray(np.vstack(blocks)).save(buffer, format="PNG", optimize=True, pnginfo=about)
    return buffer.getvalue()


def _block(case: Case) -> NDArray[np.uint8]:
    planes = _planes(case)
    below = _shown(case) if case.chroma is None else join_colour(case.companion, case.chroma)
    rows = [
        np.hstack([_tile(volume[k], case, k) for k in planes])
        for volume in (_grey(case.anatomy), _grey(below))
    ]
    bar = Image.new("RGB", (TILE * STRIP, BAR), (20, 20, 20))
    second = f"simulated {case.modalities[1]}" if case.attrs.get("simulated") else case.modalities[1]
    text = f"{case.case_id}  {case.attrs.get('split', '')}  {case.modalities[0]} above, {second} below"
    ImageDraw.Draw(bar).text((4, 2), text, fill=LETTERS)
    return np.vstack([np.asarray(bar), *rows])


def _planes(case: Case) -> list[int]:
    held = np.flatnonzero(case.brain.any(axis=(1, 2)))
    low, high = (int(held[0]), int(held[-1])) if held.size else (0, case.shape[0] - 1)
    planes = [round(p) for p in np.linspace(low, high, STRIP + 2)[1:-1]]
    if case.has_lesion:
        middle = int(np.argmax(case.lesion.sum(axis=(1, 2))))
        planes[int(np.argmin([abs(p - middle) for p in planes]))] = middle
    return planes


def _shown(case: Case) -> NDArray[np.float32]:
    """The companion in a window in which soft tissue can be seen."""
    scaling = case.attrs.get("scaling", {}).get("companion", {})
    if scaling.get("unit") != "HU":
        return case.companion
    span = scaling["high"] - scaling["low"]
    low, high = ((value - scaling["low"]) / span for value in BRAIN_WINDOW_HU)
    return np.clip((case.companion - low) / (high - low), 0, 1).astype(np.float32)


def _grey(volume: NDArray[Any]) -> NDArray[np.uint8]:
    """Greys in [0, 1] as 8 bits (D, H, W, 3); colours stay."""
    if volume.dtype == np.uint8:
        return volume
    return np.repeat(np.round(volume * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _tile(plane: NDArray[np.uint8], case: Case, index: int) -> NDArray[np.uint8]:
    """One slice with outlines, scaled to the tile with its true proportions."""
    _, h_mm, w_mm = case.spacing
    height, width = plane.shape[0] * h_mm, plane.shape[1] * w_mm
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgb = np.array(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
    for roi, mask in case.masks.items():
        small = Image.fromarray(mask[index] * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(small) >= 128
        rgb[inside & ~ndimage.binary_erosion(inside)] = COLOURS[roi]
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    top, left = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = rgb[::-1, ::-1]
    return _sided(tile)


def _sided(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile with an R on its left, which is the patient's right."""
    picture = Image.fromarray(tile)
    ImageDraw.Draw(picture).text((2, 0), "R", fill=LETTERS)
    return np.asarray(picture)

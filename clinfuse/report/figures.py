"""Panel figures: images side by side in three planes, in millimetres, with letters, outlines, scale bar."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinfuse.case import Case
from clinfuse.report.planes import centre_of, position_mm
from clinfuse.report.sheet import Layer, Sheet, png_bytes

BRAIN_WINDOW_HU = (0.0, 80.0)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A rendered panel figure: PNG bytes of the pictures, and of the outlines alone on transparent ground."""

    base: bytes
    outlines: bytes
    description: str

    @property
    def png(self) -> bytes:
        """Both in one PNG."""
        under = Image.open(io.BytesIO(self.base)).convert("RGBA")
        under.alpha_composite(Image.open(io.BytesIO(self.outlines)).convert("RGBA"))
        return png_bytes(under.convert("RGB"))


def case_panel(
    case: Case,
    *,
    fused: NDArray[np.float32] | None = None,
    uncertainty: NDArray[np.float32] | None = None,
    extra: Sequence[Layer] = (),
    uncertainty_label: str = "uncertainty",
    at: tuple[int, int, int] | None = None,
) -> Panel:
    """MRI | CT | fused | uncertainty of one case through its lesion (or brain centre), with ROI outlines.

    Args:
        case: the pair with masks; names and windows of the images come from its modalities and attrs.
        fused: (D, H, W) in [0, 1], or None (then only the sources are shown).
        uncertainty: (D, H, W), ≥ 0; shown from 0 to its 99.5th percentile inside the head.
        extra: more columns, between CT and fused.
        uncertainty_label: the title of the uncertainty's column.
        at: voxel (d, h, w) to cut through, instead of the lesion's centre.
    """
    layers = [*source_layers(case), *extra]
    if fused is not None:
        layers.append(Layer(title="fused", volume=fused))
    if uncertainty is not None:
        layers.append(uncertainty_layer(case, uncertainty, uncertainty_label))
    return three_planes(case, layers, at=at)


def source_layers(case: Case) -> list[Layer]:
    """The columns of anatomy and companion; a CT in HU is shown in its stored and in a brain window."""
    first = {"MR": "MRI"}.get(case.modalities[0], case.modalities[0])
    second = companion_name(case)
    layers = [Layer(title=first, volume=case.anatomy)]
    window = dict(case.attrs.get("scaling", {}).get("companion", {}))
    if window.get("unit") != "HU":
        return [*layers, Layer(title=second, volume=case.companion)]
    low, high = float(window["low"]), float(window["high"])
    layers.append(Layer(title=f"{second}\n{low:.0f} to {high:.0f} HU", volume=case.companion))
    near, far = ((v - low) / (high - low) for v in BRAIN_WINDOW_HU)
    title = f"{second}\n{BRAIN_WINDOW_HU[0]:.0f} to {BRAIN_WINDOW_HU[1]:.0f} HU"
    return [*layers, Layer(title=title, volume=case.companion, low=near, high=far)]


def companion_name(case: Case) -> str:
    """What the companion image must be called wherever it is shown: "simulated CT" if it is simulated."""
    return f"simulated {case.modalities[1]}" if case.attrs.get("simulated") else case.modalities[1]


def uncertainty_layer(case: Case, uncertainty: NDArray[np.float32], title: str = "uncertainty") -> Layer:
    """The uncertainty's column: perceptually even colours from 0 to the 99.5th percentile inside the head.

    Air, where both images are dark, is drawn as 0: nothing is fused there whose error one could know.
    """
    inside = case.head
    top = float(np.percentile(uncertainty[inside], 99.5)) if inside.any() else float(uncertainty.max())
    shown = np.where(inside, uncertainty, 0)
    return Layer(title=title, volume=shown, high=max(top, 1e-6), colours="inferno", unit=title)


def three_planes(
    case: Case,
    layers: Sequence[Layer],
    *,
    outlines: Mapping[str, NDArray[Any]] | None = None,
    at: tuple[int, int, int] | None = None,
) -> Panel:
    """Any volumes on a case's grid side by side, a row for each plane, all at one scale in mm.

    Args:
        case: gives geometry, field of view and, unless outlines are given, the ROI outlines.
        layers: the columns, each (D, H, W) on the case's grid.
        outlines: masks (D, H, W) by name; known names (brain, bone, lesion) have fixed colours.
        at: voxel (d, h, w) the planes pass through; default the lesion's or the brain's centre.

    Raises:
        ValueError: no layer, or one that is not on the case's grid.
    """
    if not layers or any(layer.volume.shape != case.shape for layer in layers):
        raise ValueError(f"expected layers of shape {case.shape}, got {[x.volume.shape for x in layers]}")
    at = at or centre_of(case)
    sheet = Sheet(case, layers, at)
    base = sheet.render(masks=None)
    drawn = case.masks if outlines is None else dict(outlines)
    over = sheet.render(masks={k: v for k, v in drawn.items() if v.any()})
    x, y, z = position_mm(case, at)
    names = " | ".join(layer.title.replace("\n", ", ") for layer in layers)
    planes = ", ".join(p.name for p in sheet.planes)
    words = f"{names}; {planes} plane through x {x:.0f}, y {y:.0f}, z {z:.0f} mm (RAS+)"
    return Panel(base=base, outlines=over, description=words)

"""The sheet of a panel figure: columns and planes laid out in inches, drawn at one scale in millimetres."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from clinfuse.case import Case
from clinfuse.report.planes import Plane, head_box, planes_of, position_mm

ROI_COLOURS = {"brain": "#35c9e0", "bone": "#ffb000", "lesion": "#ff4d7d"}
INK, PAPER = "#e8e8e8", "#000000"
DPI = 140
CELL_INCH = 2.05


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One column of a panel figure.

    Attributes:
        title: text above the column; a second line after a newline is set smaller.
        volume: (D, H, W) values.
        low, high: values shown as the first and last colour.
        colours: matplotlib colour map; anything but "gray" gets a colour bar.
        unit: text beside the colour bar.
    """

    title: str
    volume: NDArray[Any]
    low: float = 0.0
    high: float = 1.0
    colours: str = "gray"
    unit: str = ""


def png_bytes(image: Image.Image) -> bytes:
    """The image as an optimised PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


class Sheet:
    """The layout of one panel figure: where each picture lies, in mm and in inches."""

    def __init__(self, case: Case, layers: Sequence[Layer], at: tuple[int, int, int]) -> None:
        self.case, self.layers, self.at = case, list(layers), at
        self.planes = planes_of(case.shape, case.spacing)
        self.box = self._box_with(at)
        sizes = [p.size_mm(self._box_shape(), case.spacing) for p in self.planes]
        self.width_mm = max(width for _, width in sizes)
        self.heights_mm = [height for height, _ in sizes]
        self.inch_per_mm = CELL_INCH / self.width_mm
        self.left, self.gap, self.top, self.bottom = 0.4, 0.06, 0.42, 0.34
        self.bars = sum(layer.colours != "gray" for layer in self.layers)
        self.bar_inch = 0.62
        columns = len(self.layers) * (CELL_INCH + self.gap)
        self.width = self.left + columns + self.bars * self.bar_inch + 0.1
        rows = sum(h * self.inch_per_mm + self.gap for h in self.heights_mm)
        self.height = self.top + rows + self.bottom

    def _box_with(self, at: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        box = head_box(self.case)
        d, h, w = (slice(min(s.start, i), max(s.stop, i + 1)) for s, i in zip(box, at, strict=True))
        return d, h, w

    def _box_shape(self) -> tuple[int, int, int]:
        d, h, w = (s.stop - s.start for s in self.box)
        return d, h, w

    def render(self, masks: Mapping[str, NDArray[Any]] | None) -> bytes:
        """PNG of the pictures (masks None), or of the outlines alone on a transparent ground."""
        figure = Figure(figsize=(self.width, self.height), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.patch.set_facecolor(PAPER if masks is None else "none")
        top = self.height - self.top
        for row, (plane, height_mm) in enumerate(zip(self.planes, self.heights_mm, strict=True)):
            height = height_mm * self.inch_per_mm
            left = self.left
            for column, layer in enumerate(self.layers):
                axes = self._axes(figure, left, top - height, height)
                self._scene(axes, plane, layer if masks is None else None, masks, first=row == column == 0)
                if masks is None and row == 0:
                    self._title(figure, layer, left)
                left += CELL_INCH + self.gap
                if layer.colours != "gray":
                    if masks is None and row == 0:
                        self._colour_bar(figure, layer, left, top - height, height)
                    left += self.bar_inch
            if masks is None:
                self._row_label(figure, plane, top - height / 2)
            top -= height + self.gap
        if masks is not None:
            self._legend(figure, list(masks))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
        picture = Image.open(buffer)
        return png_bytes(picture.convert("RGB") if masks is None else picture.quantize(64, method=2))

    def _axes(self, figure: Figure, left: float, bottom: float, height: float) -> Any:
        rect = (left / self.width, bottom / self.height, CELL_INCH / self.width, height / self.height)
        axes = figure.add_axes(rect)
        axes.set_axis_off()
        return axes

    def _scene(
        self,
        axes: Any,
        plane: Plane,
        layer: Layer | None,
        masks: Mapping[str, NDArray[Any]] | None,
        *,
        first: bool,
    ) -> None:
        index = self.at[plane.axis] - self.box[plane.axis].start
        height, width = plane.size_mm(self._box_shape(), self.case.spacing)
        margin = (self.width_mm - width) / 2
        extent = (0.0, width, height, 0.0)
        if layer is not None:
            axes.imshow(
                plane.cut(layer.volume[self.box], index).astype(np.float32),
                cmap=layer.colours,
                vmin=layer.low,
                vmax=layer.high,
                extent=extent,
                interpolation="bicubic" if layer.colours == "gray" else "bilinear",
                aspect="auto",
            )
        for name, mask in (masks or {}).items():
            self._outline(axes, plane.cut(mask[self.box], index), plane, name)
        axes.set_xlim(-margin, width + margin)
        axes.set_ylim(height, 0.0)
        if layer is not None:
            _letters(axes, plane, width, height)
            if first:
                _scale_bar(axes, width + margin, height)

    def _outline(self, axes: Any, picture: NDArray[Any], plane: Plane, name: str) -> None:
        if not 0 < picture.mean() < 1:
            return
        step_y, step_x = self.case.spacing[plane.rows], self.case.spacing[plane.columns]
        y = (np.arange(picture.shape[0]) + 0.5) * step_y
        x = (np.arange(picture.shape[1]) + 0.5) * step_x
        colour = ROI_COLOURS.get(name, "#ffffff")
        width = 1.1 if name == "lesion" else 0.7
        axes.contour(x, y, picture.astype(float), levels=[0.5], colors=[colour], linewidths=width)

    def _title(self, figure: Figure, layer: Layer, left: float) -> None:
        name, _, small = layer.title.partition("\n")
        x = (left + CELL_INCH / 2) / self.width
        y = 1 - 0.06 / self.height
        figure.text(x, y, name, color=INK, fontsize=10, weight="bold", ha="center", va="top")
        figure.text(x, y - 0.17 / self.height, small, color=INK, fontsize=8, ha="center", va="top")

    def _row_label(self, figure: Figure, plane: Plane, y: float) -> None:
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane.name]
        millimetres = position_mm(self.case, self.at)[axis]
        text = f"{plane.name}\n{'xyz'[axis]} = {millimetres:.0f} mm"
        figure.text(
            0.2 / self.width,
            y / self.height,
            text,
            color=INK,
            fontsize=8,
            rotation=90,
            ha="center",
            va="center",
        )

    def _colour_bar(self, figure: Figure, layer: Layer, left: float, bottom: float, height: float) -> None:
        rect = (left / self.width, bottom / self.height, 0.1 / self.width, height / self.height)
        axes = figure.add_axes(rect)
        norm = Normalize(layer.low, layer.high)
        bar = figure.colorbar(ScalarMappable(norm, matplotlib.colormaps[layer.colours]), cax=axes)
        bar.outline.set_edgecolor(INK)
        bar.locator = MaxNLocator(5)
        axes.tick_params(colors=INK, labelsize=8, length=2)

    def _legend(self, figure: Figure, names: Sequence[str]) -> None:
        lines = [Line2D([], [], color=ROI_COLOURS.get(n, "#ffffff"), linewidth=2, label=n) for n in names]
        if lines:
            figure.legend(
                handles=lines, loc="lower center", ncols=len(lines), frameon=False, labelcolor=INK, fontsize=9
            )


def _letters(axes: Any, plane: Plane, width: float, height: float) -> None:
    left, right, top, bottom = plane.letters
    low, high = axes.get_xlim()
    pad = 0.015 * (high - low)
    edge = [withStroke(linewidth=2, foreground=PAPER)]
    style: dict[str, Any] = {"color": "#ffe66b", "fontsize": 9, "weight": "bold", "path_effects": edge}
    axes.text(low + pad, height / 2, left, ha="left", va="center", **style)
    axes.text(high - pad, height / 2, right, ha="right", va="center", **style)
    axes.text(width / 2, pad, top, ha="center", va="top", **style)
    axes.text(width / 2, height - pad, bottom, ha="center", va="bottom", **style)


def _scale_bar(axes: Any, right: float, height: float) -> None:
    length = 50.0 if right > 120 else 20.0 if right > 50 else 10.0
    y, end = height * 0.985, right - 3
    axes.plot([end - length, end], [y, y], color=INK, linewidth=2, solid_capstyle="butt")
    axes.text(
        end - length / 2,
        y - height * 0.015,
        f"{length:.0f} mm",
        color=INK,
        fontsize=7,
        ha="center",
        va="bottom",
    )

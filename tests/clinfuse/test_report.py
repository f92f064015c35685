"""Report: orientation and geometry of the panels, honest labels, pages that need nothing but themselves."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import find_objects, label

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse.report import (
    Curve,
    Layer,
    Section,
    case_panel,
    facts,
    figure,
    latency_bars,
    loss_curves,
    metric_table,
    page,
    panel_figure,
    reliability_diagram,
    step_bars,
    table,
    three_planes,
)
from clinfuse.report.figures import uncertainty_layer
from clinfuse.report.planes import AXIAL, CORONAL, SAGITTAL, centre_of, head_box, planes_of, position_mm

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL], ids=lambda p: p.name)
def test_letters_name_the_side_where_a_bright_corner_lies(plane) -> None:
    """A block at the patient's right, anterior, superior end must show up beside R, A and S."""
    volume = np.zeros((6, 8, 10), np.float32)
    volume[-2:, -2:, -2:] = 1.0  # superior, anterior, right
    picture = plane.cut(volume, volume.shape[plane.axis] - 1)
    rows, columns = np.argwhere(picture).mean(axis=0) / np.array(picture.shape)
    left, right, top, bottom = plane.letters
    assert (left if columns < 0.5 else right) in "RAS"
    assert (top if rows < 0.5 else bottom) in "RAS"


def test_radiological_convention() -> None:
    assert AXIAL.letters == ("R", "L", "A", "P")
    assert CORONAL.letters == ("R", "L", "S", "I")
    assert SAGITTAL.letters == ("A", "P", "S", "I")


def test_sizes_are_millimetres(tiny_case: Case) -> None:
    assert AXIAL.size_mm(tiny_case.shape, tiny_case.spacing) == pytest.approx((32 * 1.5, 28 * 2.0))
    assert CORONAL.size_mm(tiny_case.shape, tiny_case.spacing) == pytest.approx((12 * 3.0, 28 * 2.0))
    assert SAGITTAL.size_mm(tiny_case.shape, tiny_case.spacing) == pytest.approx((12 * 3.0, 32 * 1.5))


def test_slices_and_thin_slabs_show_the_axial_plane_only(tiny_case: Case) -> None:
    assert planes_of(tiny_case.shape, tiny_case.spacing) == (AXIAL, CORONAL, SAGITTAL)
    assert planes_of((1, 256, 256), (5.0, 1.0, 1.0)) == (AXIAL,)
    assert planes_of((4, 256, 256), (5.0, 1.0, 1.0)) == (AXIAL,)


def test_centre_lies_in_the_lesion_even_if_it_is_a_ring(tiny_case: Case) -> None:
    assert tiny_case.lesion[centre_of(tiny_case)] == 1
    d, h, w = np.ogrid[:12, :32, :28]
    radius = np.hypot(h - 16, w - 14) + 0 * d
    ring = ((radius > 5) & (radius < 8)).astype(np.uint8)
    assert ring[centre_of(replace(tiny_case, lesion=ring))] == 1
    without = replace(tiny_case, lesion=np.zeros_like(ring))
    assert tiny_case.brain[centre_of(without)] == 1
    assert centre_of(replace(without, brain=np.zeros_like(ring))) == (6, 16, 14)


def test_head_box_holds_the_head_and_position_follows_the_affine(tiny_case: Case) -> None:
    box = head_box(tiny_case)
    outside = (np.maximum(tiny_case.anatomy, tiny_case.companion) > 0.04).copy()
    outside[box] = False
    assert outside.mean() < 0.01
    expected = tiny_case.affine @ np.array([3, 2, 1, 1.0])
    assert position_mm(tiny_case, (1, 2, 3)) == pytest.approx(expected[:3])


def test_panel_is_a_picture_with_outlines_as_a_layer(tiny_case: Case) -> None:
    panel = case_panel(tiny_case, fused=tiny_case.anatomy, uncertainty=tiny_case.companion)
    base, over, both = (Image.open(io.BytesIO(b)) for b in (panel.base, panel.outlines, panel.png))
    assert base.size == over.size == both.size
    alpha = np.asarray(over.convert("RGBA"))[..., 3]
    assert 0 < (alpha > 0).mean() < 0.25
    assert "axial, coronal, sagittal" in panel.description
    assert (np.asarray(base.convert("RGB")) != np.asarray(both.convert("RGB"))).any()


def test_uncertainty_is_drawn_in_the_head_and_not_in_air(tiny_case: Case) -> None:
    case = replace(tiny_case, anatomy=tiny_case.anatomy * tiny_case.brain)
    air = (case.anatomy < 0.03) & (case.companion < 0.03)
    doubt = np.where(air, 0.9, 0.1 + 0.2 * case.brain).astype(np.float32)
    layer = uncertainty_layer(case, doubt)
    assert air.any() and not layer.volume[air].any()
    np.testing.assert_array_equal(layer.volume[case.brain > 0], doubt[case.brain > 0])
    assert layer.high == pytest.approx(0.3)


def test_panel_keeps_the_physical_aspect() -> None:
    """A ball of 20 mm radius on a 4×1×2 mm grid is as high as wide in every plane."""
    shape, spacing = (20, 80, 40), (4.0, 1.0, 2.0)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    ball = (z**2 + y**2 + x**2 < 20**2).astype(np.uint8)
    case = Case(
        case_id="ball",
        anatomy=ball.astype(np.float32),
        companion=ball.astype(np.float32),
        brain=ball,
        bone=np.zeros_like(ball),
        lesion=np.zeros_like(ball),
        affine=np.diag([2.0, 1.0, 4.0, 1.0]),
    )
    panel = three_planes(case, [Layer(title="ball", volume=case.anatomy)])
    rgb = np.asarray(Image.open(io.BytesIO(panel.base)).convert("RGB")).astype(int)
    bright = (rgb.min(axis=2) == rgb.max(axis=2)) & (rgb[..., 0] > 127)
    balls = [b for b in find_objects(label(bright)[0]) if b[0].stop - b[0].start > 60]
    assert len(balls) == 3
    for rows, columns in balls:
        assert (rows.stop - rows.start) / (columns.stop - columns.start) == pytest.approx(1.0, abs=0.06)


def test_simulated_companion_is_named_so(tiny_case: Case) -> None:
    attrs = {"simulated": True, "scaling": {"companion": {"unit": "HU", "low": -100, "high": 1700}}}
    words = case_panel(replace(tiny_case, attrs=attrs)).description
    assert "simulated CT, -100 to 1700 HU" in words
    assert re.search(r"(?<!simulated )\bCT", words) is None
    assert "simulated" not in case_panel(tiny_case).description


def test_layers_off_the_grid_are_refused(tiny_case: Case) -> None:
    with pytest.raises(ValueError, match="expected layers of shape"):
        three_planes(tiny_case, [Layer(title="x", volume=np.zeros((3, 3, 3)))])
    with pytest.raises(ValueError, match="expected layers"):
        three_planes(tiny_case, [])


class _Links(HTMLParser):
    """Collects everything a page would fetch, its ids, and whether tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [values[k] or "" for k in ("src", "srcset", "data") if k in values]
        if tag == "link" or (tag == "use" and not (values.get("xlink:href") or "").startswith("#")):
            self.fetched.append(str(values))
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in ("meta", "img", "br", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parsed(text: str) -> _Links:
    links = _Links()
    links.feed(text)
    assert not links.open
    return links


def test_page_is_self_contained_and_says_research_use(tiny_case: Case) -> None:
    curves = [Curve(name="loss", steps=range(60), values=np.linspace(1, 0.1, 60), panel="denoiser")]
    plots = [
        loss_curves(curves),
        loss_curves(curves, log=True),
        reliability_diagram({"before": ([0.1, 0.5], [0.05, 0.2])}, counts=[9, 1]),
        latency_bars({"teacher": [2.0, 2.2], "student": [0.1, 0.1]}),
        step_bars({"prep": 3.0, "train": 20.0}, [(0.0, 0.5), (23.0, 1.4)], limit_gb=4.0),
    ]
    body = panel_figure(case_panel(tiny_case, fused=tiny_case.anatomy), "A case.") + "".join(
        figure(plot, "A plot.") for plot in plots
    )
    text = page(
        "Title", [Section("One", body), Section("One", facts({"a": 1})), Section("Part", "", level=3)]
    )
    links = _parsed(text)
    assert all(source.startswith("data:image/png;base64,") for source in links.fetched)
    assert "@import" not in text and "url(http" not in text
    assert text.count(RESEARCH_USE) == 2
    assert len(links.ids) == len(set(links.ids)), "two figures of one page must not share ids"
    assert {"one", "one-2", "part"} <= set(links.ids)
    assert 'id="show-outlines"' in text and "prefers-color-scheme: dark" in text


def test_plots_take_the_pages_ink() -> None:
    svg = latency_bars({"a": [1.0]})
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg


def test_text_is_escaped() -> None:
    text = page("<b>", [Section("<i>", figure(PNG, '"><script>') + table([{"<u>": "<s>"}], caption="<q>"))])
    assert "<script>" not in text and "<s>" not in text and "<u>" not in text and "<q>" not in text
    assert "<title>&lt;b&gt;</title>" in text and "&lt;i&gt;" in text


def _summary() -> pd.DataFrame:
    rows = [
        ("clinfuse", "ssim", "brain", 0.9, 0.85, 0.95, ""),
        ("mean", "ssim", "brain", 0.7, 0.6, 0.8, ""),
        ("clinfuse", "hd95", "lesion", 2.0, 1.0, 3.0, "mm"),
        ("mean", "hd95", "lesion", 4.0, np.nan, np.nan, "mm"),
        ("max", "ssim", "brain", np.nan, np.nan, np.nan, ""),
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "roi", "mean", "low", "high", "unit"])


def test_metric_table_marks_the_best_by_direction_and_shows_the_interval() -> None:
    text = metric_table(_summary(), labels={"mean": "mean of both"})
    assert re.findall(r"<b>([\d.]+)</b>", text) == ["0.900", "2.00"]
    assert "0.850 … 0.950" in text and "ssim ↑" in text and "hd95 ↓" in text and "mean of both" in text
    assert "nan" not in text.lower() and text.count("–") == 2


def test_table_formats_numbers() -> None:
    text = table([{"x": 1.23456, "n": 3, "s": "w"}, {"x": 0.00012, "n": 5, "s": None}], best={"x": "min"})
    assert "1.23<" in text and "<b>1.20e-04</b>" in text and ">3<" in text and ">–<" in text

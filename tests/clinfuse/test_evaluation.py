"""From a fused case to rows, from rows to a summary, from a summary to tables; nothing empty or failed is hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from clinfuse.baselines import BASELINES
from clinfuse.case import Case
from clinfuse.errors import GeometryError, InputError
from clinfuse.evaluation import (
    COLUMNS,
    bootstrap_interval,
    evaluate_case,
    failed_rows,
    objectives,
    segment_lesion,
    summarise,
    to_html,
    to_markdown,
)
from clinfuse.evaluation.lesions import main_pieces
from clinfuse.evaluation.rows import RowMaker
from clinfuse.presets import load_presets

PRESET = load_presets()["balanced"]


class BrightIsLesion(nn.Module):
    """A lesion head whose answer is known: certain above a grey value."""

    def __init__(self, grey: float) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(grey))

    def forward(self, image: Tensor) -> Tensor:
        return (image > self.grey).float()


def by_name(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(r["metric"], r["roi"]): r for r in rows}


def test_rows_of_the_hard_composite(tiny_case: Case) -> None:
    fused = BASELINES["hard_roi"](tiny_case, PRESET)
    rows = evaluate_case(tiny_case, fused, "hard_roi", preset=PRESET, lesion_head=BrightIsLesion(0.72))
    assert all(tuple(r) == COLUMNS for r in rows)
    got = by_name(rows)
    assert got["ssim", "brain"]["value"] > 0.7 and got["psnr", "bone"]["value"] == 100.0
    assert got["seam", "borders"]["value"] > 0 and got["outside", "whole"]["value"] == 0
    assert got["dice", "lesion"]["value"] == 0, "the skull is bright too, and the greater piece"
    alone = evaluate_case(
        tiny_case, tiny_case.anatomy, "mri", preset=PRESET, lesion_head=BrightIsLesion(0.72)
    )
    assert by_name(alone)["dice", "lesion"]["value"] > 0.7
    assert got["hd95", "lesion"]["unit"] == "mm"
    assert {r["status"] for r in rows} == {"ok"}


def test_empty_regions_are_named(tiny_case: Case) -> None:
    bare = replace(tiny_case, bone=tiny_case.bone * 0, lesion=tiny_case.lesion * 0)
    rows = by_name(evaluate_case(bare, bare.anatomy, "mri", preset=PRESET, lesion_head=BrightIsLesion(2.0)))
    assert rows["ssim", "bone"]["status"] == "empty" and np.isnan(rows["ssim", "bone"]["value"])
    assert rows["dice", "lesion"]["status"] == "empty" and rows["dice", "lesion"]["value"] == 1.0
    assert rows["false_volume", "lesion"]["value"] == 0.0


def test_the_aligned_companion_is_the_reference(tiny_case: Case) -> None:
    moved = replace(
        tiny_case,
        companion=np.roll(tiny_case.companion, 2, axis=2),
        aligned_companion=tiny_case.companion,
    )
    right = by_name(evaluate_case(moved, tiny_case.companion, "aligned", preset=PRESET))
    wrong = by_name(evaluate_case(moved, moved.companion, "as given", preset=PRESET))
    assert right["ssim", "bone"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert wrong["ssim", "bone"]["value"] < 0.8
    assert right["seam", "borders"]["value"] == 0.0


def test_objectives_agree_with_rows(tiny_case: Case) -> None:
    fused = BASELINES["laplacian"](tiny_case, PRESET)
    head = BrightIsLesion(0.6)
    rows = by_name(evaluate_case(tiny_case, fused, "laplacian", preset=PRESET, lesion_head=head))
    values = objectives(tiny_case, fused, head, PRESET)
    assert values["brain_ssim"] == rows["ssim", "brain"]["value"]
    assert values["bone_ssim"] == rows["ssim", "bone"]["value"]
    assert values["lesion_dice"] == rows["dice", "lesion"]["value"]
    assert values["lesion_hd95_mm"] == rows["hd95", "lesion"]["value"]
    assert values["seam"] == rows["seam", "borders"]["value"]
    without = objectives(replace(tiny_case, lesion=tiny_case.lesion * 0), fused, head, PRESET)
    assert np.isnan(without["lesion_dice"]) and np.isfinite(without["seam"])


def test_lesion_head_of_both_dimensions(tiny_case: Case) -> None:
    from clinfuse.method.lesion_head import LesionHead, LesionHeadConfig

    for dims in (2, 3):
        torch.manual_seed(0)
        head = LesionHead(LesionHeadConfig(spatial_dims=dims, channels=(4, 8)))
        mask = segment_lesion(head, tiny_case.anatomy, tiny_case.spacing)
        assert mask.shape == tiny_case.shape and mask.dtype == np.uint8 and mask.max() <= 1
        assert head.training, "the head must be left as it was"
        with torch.no_grad():
            images = torch.from_numpy(tiny_case.anatomy.copy())
            given = images[None, None] if dims == 3 else images[:, None]
            expected = torch.sigmoid(head.eval()(given)).reshape(tiny_case.shape).numpy()
        if dims == 2:
            expected = gaussian_filter1d(expected, 2.0 / tiny_case.spacing[0], axis=0)
        np.testing.assert_array_equal(mask, main_pieces(expected))


def test_a_lesion_is_one_with_its_neighbours() -> None:
    """Found in a single slice or as a crumb beside a large piece it is dropped; thick slices stand for themselves."""
    image = np.zeros((14, 24, 24), np.float32)
    image[5:11, 4:12, 4:12] = 1
    lesion = image.astype(np.uint8)
    head = BrightIsLesion(0.6)
    image[7, 18:22, 18:22] = 1  # in one slice of six
    image[1, 4:12, 4:12] = 1  # large, and alone in its slice
    np.testing.assert_array_equal(segment_lesion(head, image, (2.0, 1.0, 1.0)), lesion)
    assert segment_lesion(head, image, (9.0, 1.0, 1.0))[1].any(), "9 mm apart: σ is a fifth of a slice"
    image[7, 18:22, 18:22] = 0
    one_slice = segment_lesion(head, image[7:8], (2.0, 1.0, 1.0))
    np.testing.assert_array_equal(one_slice, lesion[7:8])
    assert not segment_lesion(head, image * 0, (2.0, 1.0, 1.0)).any()


def test_second_lesions_stay() -> None:
    probability = np.zeros((8, 20, 20), np.float32)
    probability[2:6, 2:8, 2:8], probability[2:6, 14:17, 14:17], probability[2:3, 2:4, 16:18] = 0.9, 0.7, 0.9
    kept = main_pieces(probability)
    assert kept[2:6, 14:17, 14:17].all() and not kept[:, 2:4, 16:18].any()


def test_a_displaced_companion_is_a_source_of_what_is_seen_of_it(tiny_case: Case) -> None:
    moved = np.roll(tiny_case.companion, 3, axis=2)

    def seam(**given: np.ndarray) -> float:
        rows = evaluate_case(tiny_case, moved, "moved", preset=PRESET, **given)  # type: ignore[arg-type]
        return next(float(row["value"]) for row in rows if row["metric"] == "seam")

    assert seam(given=moved) == 0 < seam()


def test_misfit_fusions_are_refused(tiny_case: Case) -> None:
    with pytest.raises(GeometryError, match=r"case tiny.*\(12, 32, 28\).*\(11, 32, 28\)"):
        evaluate_case(tiny_case, tiny_case.anatomy[1:], "short", preset=PRESET)
    with pytest.raises(InputError, match=r"case tiny.*255"):
        evaluate_case(tiny_case, tiny_case.anatomy * 0 + 255, "8 bit", preset=PRESET)
    with pytest.raises(InputError, match=r"case tiny.*NaN"):
        objectives(tiny_case, tiny_case.anatomy * np.nan, None, PRESET)


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for method, level in (("ours", 0.9), ("theirs", 0.7)):
        for case in range(6):
            common = {
                "case_id": f"c{case}",
                "method": method,
                "preset": "balanced",
                "unit": "1",
                "seconds": 0.5,
            }
            rows.append(
                {
                    **common,
                    "metric": "ssim",
                    "roi": "brain",
                    "value": level + rng.normal(0, 0.02),
                    "status": "ok",
                }
            )
            empty = case == 0
            value = 1.0 if empty else level - 0.1
            rows.append(
                {**common, "metric": "dice", "roi": "lesion", "value": value}
                | {"status": "empty" if empty else "ok"}
            )
    return pd.DataFrame([*rows, *failed_rows("c6", "theirs", "balanced", ValueError("no picture"))])


def test_summary_counts_what_it_leaves_out() -> None:
    lines = summarise(table()).set_index(["method", "metric"])
    dice = lines.loc[("ours", "dice")]
    assert (dice["n"], dice["empty"], dice["failed"]) == (5, 1, 0)
    assert dice["mean"] == pytest.approx(0.8) and dice["low"] == pytest.approx(0.8)
    ssim = lines.loc[("ours", "ssim")]
    assert ssim["low"] < ssim["mean"] < ssim["high"] and ssim["n"] == 6
    assert lines.loc[("theirs", "fusion")]["failed"] == 1
    again = summarise(table())
    pd.testing.assert_frame_equal(again, summarise(table()))


def test_no_nan_slips_into_a_mean() -> None:
    rows = table()
    rows.loc[0, "value"] = np.nan
    with pytest.raises(InputError, match="no finite value"):
        summarise(rows)
    with pytest.raises(InputError, match="status"):
        summarise(rows.drop(columns="status"))


def test_bootstrap_interval_of_a_normal_sample() -> None:
    """About ±1.96 standard errors for a large normal sample."""
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < values.mean() < high
    assert np.isnan(bootstrap_interval(np.array([1.0]))).all()


def test_tables_show_intervals_and_gaps() -> None:
    summary = summarise(table())
    text = to_markdown(summary)
    assert "| ours | 0.9" in text and "ssim brain ↑" in text and "[" in text
    assert "dice/lesion: 1" in text and "fusion/whole: 1" in text and "esearch" in text
    page = to_html(summary, caption="A & B")
    assert "<table" in page and "A &amp; B" in page and "ours" in page


def test_a_long_uncertainty_table_is_folded_and_has_a_line_per_region() -> None:
    made = [
        RowMaker(case_id="a", method=f"m{k}", preset="p").row(metric, roi, 0.5)
        for k in range(5)
        for metric, roi in (("ssim", "brain"), ("ece", "head"), ("ece", "brain"))
    ]
    summary = summarise(pd.DataFrame(made))
    assert "<details><summary>Uncertainty</summary>" in to_html(summary)
    assert "<details>" not in to_html(summary[summary["method"].isin(("m0", "m1"))])
    assert "| m3: head | 0.500 |" in to_markdown(summary) and "| method | ece ↓ |" in to_markdown(summary)

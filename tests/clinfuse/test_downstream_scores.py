"""What is measured of a trained probe, and what is left out: on maps that are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from clinfuse.evaluation.downstream import ProbeCase, ProbeConfig, heat_maps
from clinfuse.evaluation.downstream_scores import probe_rows
from clinfuse.evaluation.places import Point
from clinfuse.evaluation.rows import RowMaker

SHAPE, SPACING, SIGMA = (6, 20, 30), (3.0, 1.5, 2.0), 3.0
INSIDE = {"first": (2.0, 8.0, 10.0), "second": (4.0, 12.0, 20.0)}
BESIDE = {"above": (7.5, 8.0, 10.0), "beside": (2.0, 8.0, -3.0)}


def case_of(landmarks: dict[str, Point], lesion: tuple[slice, ...] | None = None) -> ProbeCase:
    mask = np.zeros(SHAPE, np.uint8)
    if lesion:
        mask[lesion] = 1
    return ProbeCase(
        image=np.zeros((1, *SHAPE), np.float32), lesion=mask, spacing=SPACING, landmarks=landmarks
    )


def measured(
    case: ProbeCase, names: list[str], found: np.ndarray | None = None
) -> dict[tuple[str, str], dict]:
    """Rows by metric and region, of a probe that sees every landmark two voxels (3 mm) further down the rows."""
    moved = {name: (d, h + 2, w) for name, (d, h, w) in {**INSIDE, **BESIDE}.items() if name in names}
    lesion = np.zeros(SHAPE) if found is None else found
    maps = np.concatenate([lesion[None], heat_maps(case_of(moved), SIGMA)])
    probe = SimpleNamespace(names=names, config=ProbeConfig(sigma_mm=SIGMA), maps=lambda _: maps)
    rows = probe_rows(RowMaker(case_id="a", method="m", preset=""), probe, case, 2.0)
    return {(row["metric"], row["roi"]): row for row in rows}


def test_a_landmark_s_error_is_its_distance() -> None:
    rows = measured(case_of(INSIDE), list(INSIDE))
    for roi in ("first", "second", "mean"):
        assert rows["landmark", roi]["value"] == pytest.approx(3.0, abs=0.05)


def test_a_landmark_outside_of_what_was_read_is_empty_and_not_in_the_mean() -> None:
    everywhere = {**INSIDE, **BESIDE}
    rows = measured(case_of(everywhere), list(everywhere))
    assert [rows["landmark", name]["status"] for name in everywhere] == ["ok", "ok", "empty", "empty"]
    assert rows["landmark", "mean"]["value"] == pytest.approx(3.0, abs=0.05)
    none = measured(case_of(BESIDE), list(BESIDE))
    assert {row["status"] for (metric, _), row in none.items() if metric == "landmark"} == {"empty"}


def test_a_landmark_that_only_the_probe_or_only_the_case_knows_has_no_error() -> None:
    rows = measured(case_of({"first": INSIDE["first"]}), list(INSIDE))
    assert rows["landmark", "first"]["status"] == "ok" and rows["landmark", "second"]["status"] == "empty"
    unlearned = measured(case_of(INSIDE), [])
    assert {key for key in unlearned if key[0] == "landmark"} == {("landmark", "lesion centre")}


def test_a_missed_lesion_counts_with_the_grid_s_diagonal_and_an_absent_one_is_empty() -> None:
    diagonal = np.hypot(np.hypot(6 * 3, 20 * 1.5), 30 * 2)
    box = (slice(1, 3), slice(4, 8), slice(5, 9))
    missed = measured(case_of({}, box), [])
    for key in (("hd95", "lesion"), ("landmark", "lesion centre")):
        assert missed[key]["value"] == pytest.approx(diagonal) and missed[key]["status"] == "ok"
    assert missed["dice", "lesion"]["value"] == 0 and missed["dice", "lesion"]["status"] == "ok"
    found = np.roll(case_of({}, box).lesion, 2, axis=1)
    assert measured(case_of({}, box), [], found)["landmark", "lesion centre"]["value"] == pytest.approx(3.0)
    absent = measured(case_of({}), [], found)
    for key in (("dice", "lesion"), ("landmark", "lesion centre")):
        assert absent[key]["status"] == "empty"
    assert absent["false_volume", "lesion"]["value"] == pytest.approx(2 * 4 * 4 * 9 / 1000)

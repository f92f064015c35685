"""Goals beside values: what reaches them is marked, what misses them named, what is not there is neither."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest

from clinfuse.evaluation import (
    GOALS,
    LOWER_IS_BETTER,
    standing,
    standing_line,
    summarise,
    to_html,
    to_markdown,
    with_goals,
)
from clinfuse.evaluation.goals import Goal
from clinfuse.evaluation.rows import TWO_SIDED, UNITS, RowMaker

BY_NAME = {(goal.metric, goal.roi): goal for goal in GOALS}
VALUES = {
    "ours": {
        ("ssim", "brain"): 0.944,
        ("ssim", "bone"): 0.987,
        ("fsim", "brain"): 0.955,
        ("coverage", "head"): 0.894,
        ("coverage", "bone"): 0.97,
        ("brier", "bone"): 0.1,
        ("MI", "whole"): 2.4,
        ("SSIM_sum", "whole"): 1.36,
    },
    "theirs": {("ssim", "brain"): 0.96, ("MI", "whole"): 2.3},
}


def summary() -> pd.DataFrame:
    makers = {name: RowMaker(case_id="a", method=name, preset="p") for name in VALUES}
    rows = [makers[name].row(*pair, value) for name, own in VALUES.items() for pair, value in own.items()]
    rows.append(makers["ours"].row("seam", "borders", math.nan))
    return summarise(pd.DataFrame(rows))


def lines(table: str) -> dict[str, list[str]]:
    """First cell → the other cells, of the Markdown table's lines."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize(
    ("metric", "roi", "reached", "missed"),
    [
        ("ssim", "bone", (0.985, 1.0), (0.9849, 0.0)),
        ("psnr", "bone", (40.0, 100.0), (39.9,)),
        ("seam", "borders", (0.3, 0.0), (0.31,)),
        ("coverage", "lesion", (0.89, 0.9, 0.91), (0.889, 0.911, 1.0, 0.0)),
        ("ece", "brain", (0.02, 0.0), (0.021,)),
        ("spearman", "head", (0.5,), (0.49, -1.0)),
    ],
)
def test_bounds_are_reached_when_met_and_coverage_has_two(
    metric: str, roi: str, reached: tuple[float, ...], missed: tuple[float, ...]
) -> None:
    goal = BY_NAME[metric, roi]
    assert all(goal.reached(value) for value in reached)
    assert not any(goal.reached(value) for value in (*missed, math.nan))


def test_mutual_information_is_asked_in_the_unit_of_the_rows() -> None:
    assert UNITS["MI"] == "nat" and BY_NAME["MI", "whole"].least / math.log(2) == pytest.approx(3.4)
    assert BY_NAME["MI", "whole"].text == "≥ 2.357"


def test_goals_are_stated_once_each_and_ask_for_what_is_better() -> None:
    assert len(BY_NAME) == len(GOALS)
    for goal in GOALS:
        assert goal.source and (math.isfinite(goal.least) or math.isfinite(goal.most))
        if goal.metric != "coverage":
            assert math.isinf(goal.least) == (goal.metric in LOWER_IS_BETTER)
        else:
            assert (goal.least + goal.most) / 2 == pytest.approx(TWO_SIDED[goal.metric])


def test_a_method_s_goals_are_reached_missed_or_not_measured() -> None:
    found = standing(summary(), "ours")
    named = {
        kind: [(g["metric"], g["roi"]) for g in found[kind]] for kind in ("reached", "missed", "not_measured")
    }
    assert named["reached"] == [("ssim", "bone"), ("coverage", "head"), ("MI", "whole")]
    assert named["missed"] == [("ssim", "brain"), ("coverage", "bone"), ("SSIM_sum", "whole")]
    assert sum(map(len, named.values())) == len(GOALS)
    assert ("seam", "borders") in named["not_measured"], "empty"
    assert found["missed"][0] == {
        "metric": "ssim",
        "roi": "brain",
        "value": 0.944,
        "goal": "≥ 0.960",
        "source": BY_NAME["ssim", "brain"].source,
    }
    assert all(goal["value"] is None for goal in found["not_measured"])
    line = standing_line(found)
    assert line.startswith("ours reaches 3 of the 6 goals measured; missed: ssim brain 0.944 (≥ 0.960)")
    assert "coverage bone 0.970 (0.890 to 0.910)" in line
    assert line.endswith(f"; {len(GOALS) - 6} not measured")
    nothing = standing(summary(), "nobody")
    assert len(nothing["not_measured"]) == len(GOALS) and not nothing["reached"] and not nothing["missed"]


def test_every_part_of_the_table_shows_its_goals_and_marks_what_reaches_them() -> None:
    clinical, doubt, field = to_markdown(with_goals(summary())).split("### ")[1:]
    table = lines(clinical)
    assert table["*goal*"] == ["≥ 0.960", "≥ 0.985", "", "≤ 0.300"]
    assert table["ours"] == ["0.944", "0.987 ✓", "0.955", "empty"] and table["theirs"][0] == "0.960 ✓"
    table = lines(doubt)
    assert table["*goal*"] == ["0.890 to 0.910", ""]
    assert table["ours: head"][0] == "0.894 ✓" and table["ours: bone"] == ["0.970", "0.100"]
    table = lines(field)
    assert table["*goal*"] == ["≥ 2.357", "≥ 1.380"]
    assert table["ours"] == ["2.400 ✓", "1.360"] and table["theirs"][0] == "2.300"
    assert "✓: the mean over cases reaches it" in field


def test_the_page_marks_the_same_values() -> None:
    page = to_html(with_goals(summary()))
    assert page.count("<i>goal</i>") == 3 and "≥ 0.985" in page and "0.890 to 0.910" in page
    marked = re.findall(r"(\d+\.\d+)(?:</b>)? ✓", page)
    assert sorted(marked) == ["0.894", "0.960", "0.987", "2.40"]


def test_the_largest_coverage_is_not_called_the_best() -> None:
    page, text = to_html(summary()), to_markdown(summary())
    assert "<th>coverage<br>" in page and "<b>0.970</b>" not in page
    assert "| coverage |" in text and "| ssim brain ↑ |" in text


def test_a_table_without_goals_shows_none() -> None:
    for table in (to_markdown(summary()), to_html(summary())):
        assert "goal" not in table and "✓" not in table
    assert "goal" not in with_goals(summary(), "val"), "stated for the test split alone"
    fsim = summary().query("metric == 'fsim'")
    assert "goal" not in to_markdown(with_goals(fsim)) + to_html(with_goals(fsim))


def test_a_goal_in_words() -> None:
    assert Goal(metric="m", roi="r", most=0.3).text == "≤ 0.300"
    assert Goal(metric="m", roi="r", least=40).text == "≥ 40.0"

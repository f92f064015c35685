"""The lesion head's own scores, on the sources alone and on F, and the goals an evaluation reaches."""

from __future__ import annotations

import argparse
import json
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from clinfuse_platform.evaluate_lesions import (
    NOTHING,
    lesion_head_markdown,
    lesion_head_section,
    lesion_head_table,
)
from clinfuse_platform.evaluate_verb import add_arguments, run

from clinfuse.evaluation.rows import EMPTY, RowMaker

CASES = pd.DataFrame({"case_id": ["a", "b", "c", "d"], "kind": ["stroke", "tumour", "stroke", "none"]})
DICE = {"mri": (0.6, 0.2, 0.8), "ct": (0.1, 0.1, 0.3), "ours": (0.5, 0.9, 0.7), "max": (0.4, 0.4, 0.4)}


def scored() -> pd.DataFrame:
    """Three cases with a lesion and one without, in which something was found in the MRI."""
    rows = []
    for method, values in DICE.items():
        for case, value in zip("abc", values, strict=True):
            maker = RowMaker(case_id=case, method=method, preset="p")
            rows += [maker.row("dice", "lesion", value), maker.row("ssim", "brain", 0.9)]
        maker = RowMaker(case_id="d", method=method, preset="p")
        rows.append(maker.row("dice", "lesion", 0.0, EMPTY))
        rows.append(maker.row("false_volume", "lesion", 2.5 if method == "mri" else 0.0))
    return pd.DataFrame(rows)


def test_the_sources_alone_stand_beside_f_for_every_kind() -> None:
    table = lesion_head_table(scored(), CASES, "ours")
    assert table is not None
    lines = [
        f"{kind}: {image}" for kind in ("all", "none", "stroke", "tumour") for image in ("mri", "ct", "ours")
    ]
    assert list(dict.fromkeys(table["method"])) == lines
    means = table.set_index(["method", "metric"])["mean"]
    assert means["all: mri", "dice"] == pytest.approx(1.6 / 3), "a case without lesion is in no mean"
    assert means["stroke: mri", "dice"] == pytest.approx(0.7) and means["tumour: ours", "dice"] == 0.9
    assert means["stroke: ct", "dice"] == pytest.approx(0.2)
    assert means["none: mri", "false_volume"] == 2.5 and means["none: ours", "false_volume"] == 0
    assert "ssim" not in set(table["metric"])


def test_a_source_that_was_not_evaluated_is_left_out() -> None:
    rows = scored().query("method != 'ct'")
    text = lesion_head_markdown(rows, CASES, "ours")
    assert "| kind of lesion: image |" in text and "| stroke: mri | 0.700" in text and ": ct |" not in text


def test_without_a_scored_lesion_there_is_no_table() -> None:
    for rows in (scored().query("case_id == 'd'"), scored().query("metric == 'ssim'")):
        assert lesion_head_section(rows, CASES, "ours") == []
        assert lesion_head_markdown(rows, CASES, "ours") == NOTHING


def test_page_card_and_result_tell_of_the_lesion_head_and_the_goals(
    model: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [str(model), "mri", "--bare", "--data", str(tiny_store), "--steps", "1", "--slices", "4"]
    result = run(parser.parse_args([*words, "--out", str(tmp_path / "out")]))
    page, text, table = (Path(result[name]).read_text("utf-8") for name in ("result", "card", "table"))
    assert ">Lesion head<" in page and "not stated: mri" in page
    assert "## Lesion head" in text and "| not stated: mri |" in text and "| all: fresh |" in text
    assert "another model's" not in text
    rows = pd.read_parquet(result["metrics"]).query("metric == 'dice' and method == 'mri'")
    assert f"| all: mri | {rows['value'].mean():.3f} " in text
    assert "*goal*" in table and "<i>goal</i>" in page
    mri = next(line for line in table.splitlines() if line.startswith("| mri | "))
    assert mri.startswith("| mri | 1.000 ✓"), "the MRI is the brain's reference"
    goals = json.loads(json.dumps(result["goals"]))
    assert goals["method"] == "fresh" and len(goals["missed"]) > 3
    told = " ".join(capsys.readouterr().err.split())
    measured = len(goals["reached"]) + len(goals["missed"])
    assert f"fresh reaches {len(goals['reached'])} of the {measured} goals measured; missed:" in told


def test_a_judge_s_lesion_head_is_called_so_and_training_cases_have_no_goals(
    model: Path, tiny_store: Path, tmp_path: Path
) -> None:
    from clinfuse.pipeline import FusionPipeline

    judge = FusionPipeline.from_pretrained(model).save_pretrained(tmp_path / "judge")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [str(model), "--bare", "--data", str(tiny_store), "--steps", "1", "--slices", "4"]
    words += ["--split", "train", "--judge", str(judge)]
    result = run(parser.parse_args([*words, "--out", str(tmp_path / "out")]))
    for name in ("result", "card"):
        assert "The lesion head is another model's (--judge)" in unescape(
            Path(result[name]).read_text("utf-8")
        )
    assert result["goals"] == {} and "goal" not in Path(result["table"]).read_text("utf-8")

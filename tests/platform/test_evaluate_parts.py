"""What an evaluation is made of, without Ray: methods, costs, systems, drill-down, misregistration, card, recipe."""

from __future__ import annotations

import argparse
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clinfuse_platform import provenance
from clinfuse_platform.ablate_parts import trained_like
from clinfuse_platform.evaluate import Job, run_jobs
from clinfuse_platform.evaluate_card import card
from clinfuse_platform.evaluate_costs import cost_table, parameters
from clinfuse_platform.evaluate_downstream import BOTH
from clinfuse_platform.evaluate_lesions import lesion_kind
from clinfuse_platform.evaluate_methods import methods_of, uniquely_labelled
from clinfuse_platform.evaluate_recipes import default_source, refuse_leaks
from clinfuse_platform.evaluate_report import write_evaluation
from clinfuse_platform.evaluate_shift import amplitudes_of, sensitivities, shifted, split_labels
from clinfuse_platform.evaluate_slices import keep_picture, shown_slice, slice_png, with_picture
from clinfuse_platform.evaluate_verb import EVALUATE, add_arguments, check_asked, jobs_of, run
from clinfuse_platform.variants import Variant
from PIL import Image

from clinfuse.baselines import BASELINES
from clinfuse.baselines.systems import system_rows
from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import build_denoiser, recipe

BALANCED = load_presets()["balanced"].as_dict()


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.fixture(scope="module")
def evaluated(model: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A whole evaluation in this process: a model, all trivial baselines, amplitudes and the downstream probe."""
    out = tmp_path_factory.mktemp("evaluation")
    words = [str(model), "--data", str(tiny_store), "--steps", "1", "--out", str(out), "--slices", "4"]
    return out, run(asked(*words, "--amplitudes", "0,2", "--downstream", "2", "--card"))


def test_every_file_is_there_and_the_page_shows_all(evaluated: tuple[Path, dict]) -> None:
    out, result = evaluated
    assert result["lost"] == 0 and result["cases"] == 2
    for name in ("metrics", "summary", "tests", "costs", "misregistration", "downstream"):
        assert len(pd.read_parquet(result[name])), name
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("Is a difference more than chance", "Parameters and time", "Misregistration", "Downstream"):
        assert f">{title}<" in page
    assert page.count("<details>") == 2 and "simulated CT" in page and "Kendall" in page
    assert "fewer than 6 cases" in page
    table = Path(result["table"]).read_text(encoding="utf-8")
    assert "TTTFusion" in table and "clinfuse train-baseline" in table
    assert "| ct | ssim | bone | 1 | 1 |" in table.split("## Misregistration")[1]


def test_the_aligned_companion_is_the_best_and_more_shift_is_worse(evaluated: tuple[Path, dict]) -> None:
    rows = pd.read_parquet(evaluated[1]["misregistration"])
    assert set(rows["amplitude_mm"]) == {0.0, 2.0}
    found = sensitivities(rows).set_index(["method", "metric", "roi"])
    assert found.loc[("ct", "ssim", "bone"), "at 0 mm"] == pytest.approx(1.0, abs=1e-6)
    assert found.loc[("ct", "ssim", "bone"), "area"] < -0.01
    assert found.loc[("mri", "ssim", "brain"), "area"] == 0


def test_the_probe_has_a_row_for_every_input(evaluated: tuple[Path, dict]) -> None:
    rows = pd.read_parquet(evaluated[1]["downstream"])
    assert set(rows["method"]) == {"fresh", "mean", "max", "mri", "ct", "hard_roi", "prior", BOTH}
    assert {"dice", "nsd", "hd95", "landmark"} <= set(rows["metric"])
    assert set(rows.loc[rows["metric"] == "landmark", "unit"]) == {"mm"}


def test_the_card_tells_data_metrics_limits_and_use(evaluated: tuple[Path, dict], model: Path) -> None:
    text = (evaluated[0] / "model_card.md").read_text(encoding="utf-8")
    assert "Research use only" in text and "Not for diagnosis" in text and "simulated images" in text
    for title in (
        "Data and splits",
        "Results on the test split",
        "By kind of lesion",
        "Calibration",
        "Limits",
    ):
        assert f"## {title}" in text
    assert "| test | 2 | 2 | 2 |" in text and "Not calibrated" in text and "| hard_roi |" in text
    assert "## Downstream" in text and "## Misregistration" in text
    assert (model / "README.md").read_text(encoding="utf-8") == text
    FusionPipeline.from_pretrained(model)  # a card of other words leaves the model readable


def test_the_card_names_what_is_worse_than_the_composite(
    model: Path, tiny_store: Path, tmp_path: Path
) -> None:
    own = {"case_id": "ffffff", "metric": "ssim", "roi": "bone", "unit": "1", "status": "ok", "seconds": 1.0}
    rows = pd.DataFrame(
        [
            {**own, "method": "fresh", "preset": "balanced", "value": 0.5},
            {**own, "method": "hard_roi", "preset": "balanced", "value": 0.9},
            {**own, "roi": "brain", "method": "fresh", "preset": "balanced", "value": 0.7},
            {**own, "roi": "brain", "method": "hard_roi", "preset": "balanced", "value": 0.7004},
        ]
    )
    variant = Variant(label="fresh", model=str(model), preset=BALANCED)
    text = card(variant, {"rows": rows}, str(tiny_store), "test")
    assert "ssim in bone: 0.500, worse than the hard ROI composite's 0.900" in text
    assert "ssim in brain: 0.700, worse" not in text  # as good, to the decimals that are shown
    assert "| *goal* |" not in text.split("## By kind of lesion")[1]
    assert lesion_kind({"truth": {"lesion": {"kind": "stroke"}}}, 3.0) == "stroke"
    assert (lesion_kind({}, 3.0), lesion_kind({}, 0.0)) == ("not stated", "none")


def test_the_card_s_tables_show_goals_on_the_split_they_are_stated_for(
    model: Path, tiny_store: Path, tmp_path: Path
) -> None:
    calibrated = tmp_path / "calibrated"
    shutil.copytree(model, calibrated)
    known = {"cases": 2, "tolerance": 0.05, "coverage": 0.9}
    (calibrated / "calibration.json").write_text(json.dumps(known), encoding="utf-8")
    own = {"case_id": "ffffff", "method": "ours", "preset": "balanced", "unit": "1", "status": "ok"}
    values = (("ssim", "brain", 0.97), ("ssim", "bone", 0.5), ("coverage", "head", 0.9), ("ece", "head", 0.3))
    rows = pd.DataFrame([own | {"metric": m, "roi": r, "value": v, "seconds": 1.0} for m, r, v in values])
    variant = Variant(label="ours", model=str(calibrated), preset=BALANCED)
    parts = card(variant, {"rows": rows}, str(tiny_store), "test").split("\n## ")
    results = next(part for part in parts if part.startswith("Results"))
    assert "| *goal* | ≥ 0.960 | ≥ 0.985 |" in results and "| ours | 0.970 ✓ | 0.500 |" in results
    doubt = next(part for part in parts if part.startswith("Calibration"))
    assert "| *goal* | 0.890 to 0.910 | ≤ 0.020 |" in doubt and "| 0.900 ✓ | 0.300 |" in doubt
    other = card(variant, {"rows": rows}, str(tiny_store), "val")
    assert "*goal*" not in other and "✓" not in other


def test_costs_count_parameters(model: Path) -> None:
    variant = Variant(label="fresh", model=str(model), preset=BALANCED)
    expected = sum(p.numel() for p in build_denoiser(recipe("cpu-debug")).state_dict().values())
    assert parameters(variant) == expected
    rows = pd.DataFrame(
        [
            {"method": "fresh", "case_id": c, "metric": "ssim", "status": "ok", "seconds": s}
            for c, s in (("a", 1.0), ("a", 1.0), ("b", 3.0))
        ]
        + [{"method": "max", "case_id": "a", "metric": "fusion", "status": "failed: x", "seconds": 0.5}]
    )
    lines = cost_table(rows, [variant, Variant(label="max", baseline="max")]).set_index("method")
    assert lines.loc["fresh", "seconds per case"] == 2.0 and lines.loc["fresh", "cases"] == 2
    assert lines.loc["max", "failed"] == 1 and lines.loc["max", "parameters"] == 0


def test_every_system_has_a_row_or_a_reason() -> None:
    lines = {line["system"]: line for line in system_rows({"diffif": "mine"})}
    assert lines["Diff-IF"]["row"] == "mine" and lines["Diff-IF"]["why not"] == ""
    for name, line in lines.items():
        assert (line["row"] != "none") or line["why not"], name
    assert {line["proposal"] for line in lines.values()} >= {"Section 6", "reference 10", "reference 11"}


@pytest.mark.parametrize("text", ["a", "-1", "0", "0,30", "nan"])
def test_impossible_amplitudes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="misregistration"):
        amplitudes_of(text)


def test_amplitudes_always_hold_zero() -> None:
    assert amplitudes_of("") == () and amplitudes_of("4, 1") == (0.0, 1.0, 4.0)


def test_finished_results_cannot_be_shifted(tmp_path: Path) -> None:
    methods = [Variant(label="max", baseline="max"), Variant(label="their", baseline=f"their={tmp_path}")]
    labels = [variant.label for variant in shifted(methods, (0.0, 2.0))]
    assert labels == ["max @ 0", "max @ 2"]
    rows = split_labels(pd.DataFrame({"method": ["a @ b @ 2", "max @ 0"]}))
    assert list(rows["method"]) == ["a @ b", "max"] and list(rows["amplitude_mm"]) == [2.0, 0.0]


def test_the_shown_slice_is_through_the_lesion_with_square_pixels(tiny_case: Case) -> None:
    d = shown_slice(tiny_case)
    assert tiny_case.lesion[d].sum() == tiny_case.lesion.sum(axis=(1, 2)).max()
    picture = Image.open(io.BytesIO(slice_png(tiny_case.anatomy, tiny_case)))
    _, high, wide = tiny_case.spacing
    _, rows, columns = tiny_case.shape
    assert picture.width == columns and picture.height == round(rows * high / wide)
    assert picture.mode == "L"


def test_one_patient_in_two_splits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for splits, fine in ((("train", "train"), True), (("train", "test"), False)):
        frame = pd.DataFrame({"patient": ["p1", "p1"], "split": list(splits)})
        frame.to_parquet(tmp_path / "manifest.parquet")
        if fine:
            refuse_leaks(str(tmp_path))
        else:
            with pytest.raises(InputError, match=r"patients leak.*p1"):
                refuse_leaks(str(tmp_path))
    monkeypatch.delenv("CLINFUSE_TEST_DATA", raising=False)
    with pytest.raises(InputError, match="AANLIB pairs are not here"):
        default_source()


def test_wrong_use_is_told(tiny_store: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        check_asked(asked("--bare", "--data", str(tiny_store)))
    with pytest.raises(ConfigError, match="no dataset"):
        check_asked(asked("max"))
    with pytest.raises(InputError, match=r"neither a model nor a baseline.*mean, max"):
        check_asked(asked("foo", "--data", str(tiny_store)))
    assert EVALUATE.needs_ray and EVALUATE.check is check_asked
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    told = " ".join(parser.format_help().split())
    assert all(name in told for name in BASELINES)


def test_folders_that_do_not_fit_are_failed_rows_with_both_sides(tiny_store: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    np.save(theirs / "ffffff.npy", np.zeros((8, 32, 27), np.float32))
    np.save(theirs / "gggggg.npy", np.full((8, 32, 28), 3.0, np.float32))
    result = run(
        asked(f"their={theirs}", "--bare", "--data", str(tiny_store), "--out", str(tmp_path / "out"))
    )
    assert result["lost"] == 2
    rows = pd.read_parquet(result["metrics"]).set_index("case_id")
    assert "(8, 32, 28)" in rows.loc["ffffff", "status"] and "(8, 32, 27)" in rows.loc["ffffff", "status"]
    assert "[0, 1]" in rows.loc["gggggg", "status"] and "3" in rows.loc["gggggg", "status"]
    assert "What failed" in Path(result["result"]).read_text(encoding="utf-8")


def test_lesions_are_found_by_the_judge_that_is_asked(model: Path, tiny_store: Path, tmp_path: Path) -> None:
    """A judge that sees lesions nowhere: no Dice, also where no model is shown."""
    pipeline = FusionPipeline.from_pretrained(model)
    assert pipeline.lesion_head is not None
    last = [p for name, p in pipeline.lesion_head.named_parameters() if name.endswith("bias")][-1]
    last.data.fill_(-1e3)
    blind = pipeline.save_pretrained(tmp_path / "blind")
    words = [
        "hard_roi",
        "--bare",
        "--data",
        str(tiny_store),
        "--judge",
        str(blind),
        "--out",
        str(tmp_path / "out"),
    ]
    rows = pd.read_parquet(run(asked(*words))["metrics"])
    assert (rows.loc[rows["metric"] == "dice", "value"] == 0).all() and (rows["metric"] == "dice").any()


def test_students_to_compare_are_trained_by_as_many_workers_as_their_teacher(
    model: Path, tmp_path: Path
) -> None:
    pipeline = replace(FusionPipeline.from_pretrained(model), metadata={"workers": 2})
    teacher = pipeline.save_pretrained(tmp_path / "teacher")
    assert trained_like(teacher, ["seed=1"]) == ["--set", "seed=1", "--workers", "2"]
    assert trained_like(model, []) == ["--workers", "1"]


def test_a_page_of_nothing_but_failures_is_written(tiny_store: Path, tmp_path: Path) -> None:
    variant = Variant(label="gone", baseline=f"gone={tmp_path / 'gone'}", preset=BALANCED)
    job = Job(variant=variant, case_id="ffffff", part=str(tmp_path / "p.parquet"))
    rows = run_jobs([job], str(tiny_store))
    assert rows["status"].str.startswith("failed").all()
    files = write_evaluation(rows, tmp_path / "out", str(tiny_store), [job])
    assert "What failed" in files["report"].read_text(encoding="utf-8")
    before = {name: file.stat().st_ino for name, file in files.items()}
    write_evaluation(rows, tmp_path / "out", str(tiny_store), [job])
    assert all(files[name].stat().st_ino != old for name, old in before.items()), "written over in place"


def test_a_picture_kept_again_replaces_the_old_one_whole(tiny_case: Case, tmp_path: Path) -> None:
    file = tmp_path / "images" / "a.npz"
    keep_picture(file, tiny_case.anatomy, None)
    old = file.read_bytes()
    with file.open("rb") as reader:
        keep_picture(file, tiny_case.companion, tiny_case.anatomy)
        assert reader.read() == old
    assert set(with_picture(tiny_case, file)) == {"case", "fused", "uncertainty"}


def test_what_other_code_made_is_not_taken_for_this_code_s(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = asked("max", "mri", "--bare", "--data", str(tiny_store))
    variants = methods_of(arguments)

    def parts() -> list[str]:
        return [job.part for job in jobs_of(variants, ["ffffff", "gggggg"], arguments, tmp_path)]

    first = parts()
    assert first == parts() and len({*first}) == 4
    assert [Path(part).stem[-6:] for part in first] == ["ffffff"] * 2 + ["gggggg"] * 2, "case by case"
    monkeypatch.setattr(provenance, "code_hash", lambda: "other")
    assert not {*first} & {*parts()}


def test_no_two_methods_share_a_label() -> None:
    given = [
        Variant(label="model", model="/runs/a/model"),
        Variant(label="model", model="/runs/b/model"),
        Variant(label="max", baseline="max=/x"),
        Variant(label="max", baseline="max"),
    ]
    assert [v.label for v in uniquely_labelled(given)] == ["a/model", "b/model", "max", "max (2)"]

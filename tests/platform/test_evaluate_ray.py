"""Evaluation and ablations on real Ray: the table, going on where it stopped, a failed case as a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from clinfuse_platform import ablate_parts
from clinfuse_platform.ablate_report import against_first, jitter_area
from clinfuse_platform.ablations import ABLATIONS, chosen, labelled
from clinfuse_platform.evaluate import failed_cases
from clinfuse_platform.evaluate_methods import baseline_of, methods_of
from clinfuse_platform.variants import Variant, jittered, slab, with_automatic_masks
from clinfuse_platform.verb_table import run_verb

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.error_head import ErrorHead
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import build_denoiser, build_lesion_head, denoiser_loss, recipe
from clinfuse.verbs import parse_settings

BASE = Variant(label="base", model="m", model_hash="h", preset=load_presets()["balanced"].as_dict())


@pytest.mark.ray
def test_methods_side_by_side_and_again_without_work(
    ray_session: None, model: Path, tiny_store: Path, tmp_path: Path
) -> None:
    words = [str(model), "--data", str(tiny_store), "--steps", "2", "--out", str(tmp_path / "out")]
    result = run_verb("evaluate", words)
    assert result["lost"] == 0 and result["cases"] == 2
    assert result["methods"] == ["fresh", "mean", "max", "mri", "ct", "hard_roi", "prior"]
    rows = pd.read_parquet(result["metrics"])
    assert set(rows["case_id"]) == {"ffffff", "gggggg"}
    mri = rows[(rows["method"] == "mri") & (rows["metric"] == "ssim") & (rows["roi"] == "brain")]
    np.testing.assert_allclose(mri["value"], 1.0, atol=1e-6)
    assert {"dice", "nsd", "hd95"} <= set(rows.loc[rows["method"] == "fresh", "metric"])
    page = Path(result["result"]).read_text()
    assert "Research use only" in page and "data:image/png;base64" in page
    parts = sorted((tmp_path / "out" / "parts").iterdir())
    stamps = [part.stat().st_mtime_ns for part in parts]
    assert len(parts) == 7 * 2
    again = run_verb("evaluate", words)
    assert [part.stat().st_mtime_ns for part in parts] == stamps
    pd.testing.assert_frame_equal(rows, pd.read_parquet(again["metrics"]))


@pytest.mark.ray
def test_a_damaged_case_is_a_row_and_the_others_go_on(
    ray_session: None, tiny_store: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, damaged)
    for chunk in (damaged / "cases" / "ffffff" / "anatomy").rglob("c/**/*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    words = ["mean", "mri", "--bare", "--data", str(damaged), "--out", str(tmp_path / "out")]
    result = run_verb("evaluate", words)
    rows = pd.read_parquet(result["metrics"])
    assert result["lost"] == failed_cases(rows) == 2
    failed = rows[rows["status"].str.startswith("failed")]
    assert set(failed["case_id"]) == {"ffffff"}
    assert rows.loc[rows["case_id"] == "gggggg", "status"].eq("ok").all()
    assert "failed" in Path(result["table"]).read_text()


@pytest.mark.ray
def test_all_ablations(
    ray_session: None,
    model: Path,
    tiny_store: Path,
    tmp_path: Path,
    error_head: Callable[..., ErrorHead],
) -> None:
    pipeline = FusionPipeline.from_pretrained(model)
    pipeline.error_head = error_head(0.1)
    pipeline.save_pretrained(tmp_path / "model")
    words = ["--data", str(tiny_store), "--cases", "1", "--slices", "2", "--steps", "2"]
    result = run_verb("ablate", [str(tmp_path / "model"), *words, "--out", str(tmp_path / "out")])
    assert result["lost"] == 0 and result["ablations"] == list(ABLATIONS)
    rows = pd.read_parquet(result["metrics"])
    assert set(rows["ablation"]) == set(ABLATIONS)
    assert set(rows.loc[rows["ablation"] == "jitter", "level"]) == {"0", "1", "2", "4"}
    assert Path(result["result"]).read_text().count("<svg") >= len(ABLATIONS)
    table = Path(result["table"]).read_text()
    assert all(f"## {name}" in table for name in ABLATIONS)
    assert table.count("Nothing differs by more than chance") == len(ABLATIONS), "of one case nothing can"


def test_unknown_method_lists_models_and_baselines(tiny_store: Path, tmp_path: Path) -> None:
    words = ["nosuch", "--data", str(tiny_store), "--storage", str(tmp_path)]
    import argparse

    from clinfuse_platform.evaluate_verb import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(InputError, match=r"hard_roi"):
        methods_of(parser.parse_args(words))


def test_a_folder_of_results_is_labelled_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "secret" / "theirs").mkdir(parents=True)
    (tmp_path / "secret" / "theirs" / "a.npy").write_bytes(b"1")
    label, full, content = baseline_of(f"other={tmp_path / 'secret' / 'theirs'}")
    assert label == "other" and full == f"other={tmp_path / 'secret' / 'theirs'}"
    assert baseline_of(f"folder:{tmp_path / 'secret' / 'theirs'}")[0] == "theirs"
    (tmp_path / "secret" / "theirs" / "a.npy").write_bytes(b"22")
    assert baseline_of(f"other={tmp_path / 'secret' / 'theirs'}")[2] != content
    assert baseline_of("mean") == ("mean", "mean", "")
    with pytest.raises(InputError, match="no such folder"):
        baseline_of("other=/nowhere/at/all")


def test_equal_settings_have_one_key_whatever_their_label() -> None:
    variants = {v.label: v for name in ABLATIONS for v in labelled(ABLATIONS[name], BASE)}
    assert variants["masks: stored"].key() == variants["modulation: on"].key() != variants["jitter: 0"].key()
    assert variants["guidance: on"].key() != variants["guidance: off"].key()
    assert variants["steps: 4"].key("data1") != variants["steps: 4"].key("data2")
    samplers = {v.sampler: v.key() for v in variants.values()}
    assert set(samplers) == {"", "ddim", "ddpm", "dpmsolver++"} and len(set(samplers.values())) == 4
    assert variants["border: soft HD95"].key() == variants["guidance: on"].key()
    assert variants["modulation: off (κ = 0)"].named_preset().kappa == 0


@pytest.mark.parametrize("sampler", ["ddpm", "dpmsolver++"])
@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_variant_s_sampler_is_the_pipeline_s_for_that_fusion_alone(
    model: Path, tiny_case: Case, sampler: str, kind: str
) -> None:
    pipeline, slab = replace(FusionPipeline.from_pretrained(model), kind=kind), tiny_case.slices(4, 6)
    asked = replace(BASE, steps=3, align=False)
    plain, own = (replace(asked, sampler=name).fuse(slab, pipeline)[0] for name in ("", "ddim"))
    fused = replace(asked, sampler=sampler).fuse(slab, pipeline)[0]
    np.testing.assert_array_equal(plain, own)
    assert pipeline.diffusion == DiffusionConfig() and not np.array_equal(fused, plain)
    other = replace(pipeline, diffusion=DiffusionConfig(sampler=sampler))
    np.testing.assert_array_equal(fused, asked.fuse(slab, other)[0])


def test_the_border_levels_differ_in_the_border_term_alone(model: Path, tiny_case: Case) -> None:
    slab = tiny_case.slices(5, 7)
    levels = {v.label: replace(v, steps=2, align=False) for v in labelled(ABLATIONS["border"], BASE)}
    soft, surface = levels["border: soft HD95"], levels["border: generalized surface loss"]
    assert replace(soft, label="", border="surface") == replace(surface, label="")
    pipeline = FusionPipeline.from_pretrained(model)
    assert not np.array_equal(soft.fuse(slab, pipeline)[0], surface.fuse(slab, pipeline)[0])
    without = {**BASE.preset, "lambda_hd": 0.0}
    alike = [replace(level, preset=without).fuse(slab, pipeline)[0] for level in (soft, surface)]
    np.testing.assert_allclose(*alike, atol=1e-5)


@pytest.mark.parametrize("part", ablate_parts.PARTS)
def test_a_model_without_a_part_learns_and_fuses(part: str, tiny_case: Case) -> None:
    whole = recipe("cpu-debug", crop=(24, 24))
    config = whole.changed(parse_settings(list(ablate_parts.PARTS[part])))
    assert (config == whole) == (part == "whole method")
    slab = tiny_case.slices(5, 7)
    arrays = {"anatomy": slab.anatomy, "aligned": slab.companion, **slab.masks}
    batch = {
        name: torch.as_tensor(a[:, :24, :24], dtype=torch.float32)[:, None] for name, a in arrays.items()
    }
    batch |= {"spacing": torch.tensor([slab.spacing[1:]] * 2), "ct": torch.ones(2)}
    denoiser, head = build_denoiser(config), build_lesion_head(config).freeze()
    value, _ = denoiser_loss(config, head)(denoiser, batch, torch.Generator().manual_seed(0))
    value.backward()
    slopes = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert all(bool(slope.isfinite().all()) for slope in slopes) and any(
        bool(slope.any()) for slope in slopes
    )
    pipeline = FusionPipeline(members=[denoiser], lesion_head=head, diffusion=config.diffusion)
    fused = replace(BASE, steps=3, guided=False).fuse(slab, pipeline)[0]
    assert fused.shape == slab.shape and np.isfinite(fused).all() and np.ptp(fused) > 0.1


@pytest.mark.ray
def test_models_without_one_part_are_trained_and_compared(
    ray_session: None, model: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ("whole method", "free denoiser, x₀-prediction")
    monkeypatch.setattr(ablate_parts, "PARTS", {label: ablate_parts.PARTS[label] for label in kept})
    words = [str(model), "--data", str(tiny_store), "--only", "uncertainty", "--steps", "2", "--slices", "2"]
    words += ["--retrain", "cpu-debug", "--set", "lesion_steps=2", "--set", "denoiser_steps=3"]
    result = run_verb("ablate", [*words, "--out", str(tmp_path)])
    rows = pd.read_parquet(result["metrics"])
    assert result["lost"] == 0 and result["ablations"] == ["uncertainty", "parts", "parts misregistered"]
    assert set(rows.loc[rows["ablation"] == "parts", "level"]) == set(kept)
    ssim = rows[(rows["metric"] == "ssim") & (rows["ablation"] == "parts")].groupby("level")["value"].mean()
    assert ssim[kept[0]] > ssim[kept[1]], "a denoiser without anchor has learned nothing in three steps"

    monkeypatch.setattr(ablate_parts, "STUDENT_STEPS", (1,))
    monkeypatch.setattr(ablate_parts, "TEACHER_STEPS", 3)
    words = ["part-0", "--storage", str(tmp_path / "runs"), "--students", *words[1:7]]
    words += ["--set", "distill_iterations=1", "--set", "distill_batches=1", "--set", "teacher_steps=1"]
    result = run_verb("ablate", [*words, "--out", str(tmp_path / "students")])
    table = Path(result["table"]).read_text()
    assert result["lost"] == 0 and result["ablations"] == ["uncertainty", "distillation"]
    assert (tmp_path / "runs" / "part-0" / "student-1" / "model_index.json").exists()
    assert "teacher, 1 member, 3 steps" in table and "student, 1 member, 1 steps" in table


def test_unknown_ablation_is_refused() -> None:
    assert [a.name for a in chosen(["steps"], error_head=False)] == ["steps"]
    with pytest.raises(ConfigError, match="jitter"):
        chosen(["nosuch"], error_head=True)


def test_a_model_without_error_head_is_not_asked_what_that_adds() -> None:
    assert [a.name for a in chosen([], error_head=False)] == [a for a in ABLATIONS if a != "error_head"]
    assert [a.name for a in chosen(["error_head"], error_head=True)] == ["error_head"]
    with pytest.raises(ConfigError, match="clinfuse calibrate"):
        chosen(["error_head"], error_head=False)


def test_levels_that_differ_in_their_doubt_alone_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    lines = [
        {
            "case_id": f"c{n}",
            "method": f"error_head: {level}",
            "metric": metric,
            "roi": "bone",
            "value": value,
        }
        for n in range(8)
        for level, rank in (("off", 0.1), ("on", 0.6))
        for metric, value in (("ssim", 0.9), ("spearman", rank + 0.02 * rng.normal()))
    ]
    sentence, tests = against_first(pd.DataFrame(lines).assign(status="ok", preset="balanced"))
    assert sentence.startswith("What differs by more than chance from error_head: off")
    assert tests[["metric", "better", "than"]].values.tolist() == [
        ["spearman bone", "error_head: on", "error_head: off"]
    ]


def test_jitter_area_of_a_straight_line_is_half_its_fall() -> None:
    assert jitter_area([0, 1, 2, 4], [1.0, 0.9, 0.8, 0.6]) == pytest.approx(-0.2)
    assert jitter_area([4, 0, 2], [3.0, 3.0, 3.0]) == 0
    assert np.isnan(jitter_area([0, 1], [np.nan, 1.0]))


def test_a_warped_companion_is_repeatable_and_grows_with_the_amplitude(tiny_case: Case) -> None:
    small, again, large = (jittered(tiny_case, mm, seed=3) for mm in (1.0, 1.0, 4.0))
    np.testing.assert_array_equal(small, again)
    difference = [float(np.abs(image - tiny_case.companion).mean()) for image in (small, large)]
    assert 0 < difference[0] < difference[1]
    assert large.min() >= 0 and large.max() <= 1


def test_automatic_masks_find_brain_and_bone_from_hounsfield_units(tiny_case: Case) -> None:
    scaling = {"companion": {"unit": "HU", "low": -100, "high": 1700}}
    case = replace(tiny_case, bone=np.zeros_like(tiny_case.bone), attrs={"scaling": scaling})
    case = with_automatic_masks(case)
    found = case.bone > 0
    overlap = 2 * (found & (tiny_case.bone > 0)).sum() / (found.sum() + tiny_case.bone.sum())
    assert overlap > 0.9
    assert case.attrs["provenance"] == {"brain": "auto:ct", "bone": "auto:ct"}


def test_automatic_masks_lie_where_the_misregistered_ct_does_and_stored_ones_where_they_are_true(
    tiny_case: Case,
) -> None:
    scaling = {"companion": {"unit": "HU", "low": -100, "high": 1700}}
    case = replace(tiny_case, attrs={"scaling": scaling})
    moved = replace(BASE, jitter_mm=4.0)
    kept = moved.seen(case)
    np.testing.assert_array_equal(kept.bone, case.bone)
    assert kept.attrs["provenance"]["bone"] == "kept", "aligning the CT does not move them"
    made = replace(moved, masks="auto").seen(case)
    assert not np.array_equal(made.bone, replace(BASE, masks="auto").seen(case).bone)
    assert made.attrs["provenance"]["bone"].startswith("auto:ct"), "aligning the CT moves them, too"


def test_the_slab_is_about_the_lesion(tiny_case: Case) -> None:
    cut = slab(tiny_case, 4)
    assert cut.shape[0] == 4 and cut.has_lesion
    assert slab(tiny_case, None) is tiny_case and slab(tiny_case, 99) is tiny_case


def test_rows_are_json_able() -> None:
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(BASE)))["label"] == "base"

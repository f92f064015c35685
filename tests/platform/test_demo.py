"""The whole job with the recipe cpu-debug on real Ray: every room at work, and a report that holds what it promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from clinfuse_platform.cli import main
from clinfuse_platform.demo import COMMANDS
from clinfuse_platform.demo_cases import first_test_patient

from clinfuse import RESEARCH_USE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [
        sys.executable,
        "-m",
        "clinfuse_platform.cli",
        "demo",
        "--recipe",
        "cpu-debug",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def journal(demo: Path) -> dict:
    return json.loads((demo / "demo.json").read_text())


def test_every_step_was_done_and_its_command_noted(journal: dict) -> None:
    steps = {step["title"]: step for step in journal["steps"]}
    assert list(steps) == [*COMMANDS, "time teacher and student", "serve and fuse", "report"]
    assert all(step["seconds"] > 0 and step["cpu_seconds"] >= 0 for step in steps.values())
    assert all(steps[title]["command"].startswith(f"clinfuse {title} ") for title in COMMANDS)
    assert steps["prep"]["result"]["lost"] == 0 and steps["evaluate"]["result"]["lost"] == 0
    assert steps["train"]["command"].endswith("--workers 2")


def test_memory_stays_below_the_limit(journal: dict) -> None:
    assert 0.3 < journal["peak_gb"] < 4.0
    assert len(journal["memory"]) > 10


def test_split_is_by_patient_and_the_test_split_is_not_empty(demo: Path) -> None:
    manifest = pd.read_parquet(demo / "cohort.zarr" / "manifest.parquet")
    assert len(manifest) >= 6 and {"train", "val", "test"} == set(manifest["split"])
    assert manifest.groupby("patient")["split"].nunique().eq(1).all()


def test_served_image_lies_on_the_anatomy_image(demo: Path, journal: dict) -> None:
    served = next(step for step in journal["steps"] if step["title"] == "serve and fuse")["result"]
    source = nib.load(demo / "cohort" / first_test_patient(demo / "cohort.zarr") / "mr.nii.gz")
    for key in ("fused", "uncertainty", "interval"):
        image = nib.load(served["files"][key])
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
        values = image.get_fdata()
        assert np.isfinite(values).all() and values.min() >= 0
    fused = nib.load(served["files"]["fused"]).get_fdata()
    assert 0.05 < fused.std() < 0.5 and fused.max() <= 1
    info = served["info"]
    assert info["members_answered"] == info["members_asked"] == 3 and not info["degraded"]


def test_baselines_are_in_the_table(demo: Path) -> None:
    summary = pd.read_parquet(demo / "evaluate" / "summary.parquet")
    assert {"ensemble", "mean", "max", "mri", "ct", "hard_roi", "prior"} <= set(summary["method"])
    brain = summary[(summary["metric"] == "ssim") & (summary["roi"] == "brain")].set_index("method")["mean"]
    assert brain["mri"] == pytest.approx(1.0) and brain["ensemble"] > brain["ct"]


def test_fronts_of_both_presets(demo: Path) -> None:
    trials = pd.read_parquet(demo / "sweep" / "trials.parquet")
    assert set(trials["preset"]) == {"balanced", "bone_tumor"}
    assert trials.groupby("preset")["on_front"].any().all()


def test_report_holds_everything_and_needs_nothing_else(demo: Path) -> None:
    text = (demo / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", text)
    assert titles == [
        "In short",
        "Test cases",
        "Against trivial baselines",
        "Uncertainty",
        "Training",
        "Fronts of two presets",
        "Teacher and student",
        "The served result",
        "How each number came to be",
    ]
    assert RESEARCH_USE in text and "All CT images on this page are simulated CT" in text
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) >= 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    words = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", text, flags=re.DOTALL)
    shown = re.findall(r"(?<!simulated )\bCT\b(?! images on this page)(?! is)", words)
    assert len(shown) <= 3, "CT must be called simulated CT wherever an image is shown"
    assert not re.search(r"\bnan\b", words, flags=re.IGNORECASE)
    assert "clinfuse train" in words and "clinfuse serve" in words


def test_going_on_with_a_finished_demo_does_nothing_again(demo: Path, journal: dict) -> None:
    assert main(["demo", "--recipe", "cpu-debug", "--out", str(demo), "--resume"]) == 0
    again = json.loads((demo / "demo.json").read_text())
    assert again["steps"] == journal["steps"]


def test_another_demo_is_not_written_over_it(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--recipe", "cpu-debug", "--out", str(demo)]) == 2
    assert "--resume" in capsys.readouterr().err

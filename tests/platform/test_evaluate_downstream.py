"""The downstream probe over a dataset, without Ray: every input alike, what is kept, what fails."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clinfuse_platform import evaluate_downstream, provenance
from clinfuse_platform.evaluate_downstream import BOTH, Task, measured, probe_case
from clinfuse_platform.evaluate_methods import methods_of
from clinfuse_platform.evaluate_verb import add_arguments, check_asked, jobs_of, run
from clinfuse_platform.variants import Variant
from clinfuse_prep.store import CaseStore

from clinfuse.errors import ConfigError


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


def test_probe_results_are_kept(tiny_store: Path, tmp_path: Path) -> None:
    arguments = asked("max", "--bare", "--data", str(tiny_store), "--downstream", "1")
    variants = methods_of(arguments)
    first = measured(variants, arguments, tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "downstream" / "parts").iterdir()}
    pd.testing.assert_frame_equal(first, measured(variants, arguments, tmp_path))
    assert stamps == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "downstream" / "parts").iterdir()}
    assert len(jobs_of(variants, ["ffffff"], arguments, tmp_path)) == 1


def test_what_failed_downstream_is_lost_and_told(tiny_store: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, damaged)
    for chunk in (damaged / "cases" / "aaaaaa" / "anatomy").rglob("c/**/*"):  # a training case
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    out = tmp_path / "out"
    result = run(asked("max", "--bare", "--data", str(damaged), "--downstream", "1", "--out", str(out)))
    rows = pd.read_parquet(result["downstream"])
    assert rows["status"].str.startswith("failed").all()
    told = rows.groupby("method")["case_id"].apply(sorted).to_dict()
    assert told == {"max": ["aaaaaa", "ffffff", "gggggg"], BOTH: ["ffffff", "gggggg"]}
    assert result["lost"] == 5 and pd.read_parquet(result["metrics"])["status"].eq("ok").all()
    assert "What failed" in Path(result["result"]).read_text(encoding="utf-8")


def tasks_of(
    variants: list[Variant], arguments: argparse.Namespace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Task]:
    """The trainings that `measured` asks for, by label; none is done."""
    asked_for: dict[str, Task] = {}

    def noted(tasks: list[Task], data: str) -> list[object]:
        asked_for.update({task.label: task for task in tasks})
        return []

    monkeypatch.setattr(evaluate_downstream, "run_tasks", noted)
    measured(variants, arguments, out)
    return asked_for


def test_every_input_is_scored_with_the_first_method_s_tolerance(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = asked("max", "mri", "--bare", "--data", str(tiny_store), "--downstream", "1")
    arguments.preset = "stroke"
    first, second = methods_of(arguments)
    assert first.preset["tau_mm"] == 3.0
    own_table = replace(second, preset={**second.preset, "tau_mm": 1.0})
    found = tasks_of([first, own_table], arguments, tmp_path, monkeypatch)
    assert {label: task.tolerance_mm for label, task in found.items()} == {"max": 3.0, "mri": 3.0, BOTH: 3.0}


def test_the_sources_together_are_what_they_are_alone(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = asked("mri", "ct", "--bare", "--data", str(tiny_store), "--downstream", "1", "--slices", "4")
    tasks = tasks_of(methods_of(arguments), arguments, tmp_path, monkeypatch)
    alone = [probe_case(CaseStore(tiny_store), "ffffff", tasks[label]).image for label in ("mri", "ct")]
    together = probe_case(CaseStore(tiny_store), "ffffff", tasks[BOTH]).image
    assert together.shape == (2, 4, 32, 28) and together.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_what_other_code_measured_is_measured_anew_for_every_input(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = asked("max", "--bare", "--data", str(tiny_store), "--downstream", "1")
    before = tasks_of(methods_of(arguments), arguments, tmp_path, monkeypatch)
    monkeypatch.setattr(provenance, "code_hash", lambda: "other")
    after = tasks_of(methods_of(arguments), arguments, tmp_path, monkeypatch)
    assert before.keys() == after.keys() == {"max", BOTH}
    assert not {task.part for task in before.values()} & {task.part for task in after.values()}


def test_the_probe_is_not_measured_on_patients_it_learned_from(tiny_store: Path, tmp_path: Path) -> None:
    words = ("max", "--data", str(tiny_store), "--out", str(tmp_path), "--downstream", "1", "--split")
    check_asked(asked(*words, "val"))
    with pytest.raises(ConfigError, match="held out"):
        check_asked(asked(*words, "train"))

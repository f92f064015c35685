"""A search of training values on real Ray: trials train, are scored and kept; other settings are another sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case
from clinfuse.errors import ConfigError

pytestmark = pytest.mark.ray
SMALL = ["crop=[16,16]", "lesion_steps=2", "denoiser_steps=6"]


@pytest.fixture
def store(tiny_case: Case, tmp_path: Path) -> Path:
    """Two patients to train, one to validate."""
    place = CaseStore(tmp_path / "d.zarr")
    splits = {"a": "train", "b": "train", "c": "val"}
    cases = [replace(tiny_case, case_id=i, attrs={"patient": i, "split": s}) for i, s in splits.items()]
    for case in cases:
        place.write(case)
    place.commit_manifest([manifest_row(case) for case in cases])
    return tmp_path / "d.zarr"


def words(store: Path, out: Path, *settings: str) -> list[str]:
    common = [str(store), "--recipe", "cpu-debug", "--out", str(out), "--trials", "2", "--rungs", "2"]
    common += ["--slots", "1", "--slices", "2", "--steps", "1", "--sampler", "random"]
    return [*common, *(word for setting in settings for word in ("--set", setting))]


def test_trials_train_and_a_sweep_goes_on_under_its_own_settings_alone(
    ray_session: None, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    result = run_verb("sweep-train", words(store, out, *SMALL))
    assert result["failed"] == 0 and result["completed"] >= 1
    table = pd.read_parquet(out / "trials.parquet")
    whole = table[table["state"] == "complete"]
    assert whole[["brain_ssim", "bone_ssim"]].notna().all(axis=None)
    assert len(list((out / "runs").glob("*/model/model_index.json"))) == len(table)
    with pytest.raises(ConfigError, match=r"set=.*'denoiser_steps': 6.*'denoiser_steps': 7"):
        run_verb("sweep-train", [*words(store, out, *SMALL[:2], "denoiser_steps=7"), "--resume"])
    with pytest.raises(ConfigError, match=r"workers=1.*workers=2"):
        run_verb("sweep-train", [*words(store, out, *SMALL), "--resume", "--workers", "2"])
    again = run_verb("sweep-train", [*words(store, out, *SMALL), "--resume"])
    assert again["trials"] == result["trials"] and again["compute_seconds"] == 0

"""train-baseline end to end on a tiny dataset, and the trained folder in the table of methods."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from clinfuse_platform.baseline_verb import KINDS, TRAIN_BASELINE
from clinfuse_prep.store import CaseStore

from clinfuse.baselines import BASELINES
from clinfuse.baselines.learned import KINDS as KNOWN
from clinfuse.case import Case
from clinfuse.presets import load_presets


def test_kinds_are_those_there_are() -> None:
    assert set(KINDS) == set(KNOWN)


def test_trains_and_is_found(tiny_case: Case, tmp_path: Path) -> None:
    data, out = tmp_path / "tiny.zarr", tmp_path / "conv"
    store = CaseStore(data)
    store.write(replace(tiny_case, case_id="c1", attrs={"patient": "p1", "split": "train"}))
    parser = argparse.ArgumentParser()
    TRAIN_BASELINE.add_arguments(parser)
    words = [
        str(data),
        "--kind",
        "conv",
        "--out",
        str(out),
        "--steps",
        "3",
        "--crop",
        "24",
        "--batch-size",
        "2",
    ]
    result = TRAIN_BASELINE.run(parser.parse_args(words))
    assert (
        result["parameters"] > 0 and Path(result["result"]) == out and np.isfinite(result["last"]["fusion"])
    )
    fused = BASELINES[f"conv={out}"](tiny_case, load_presets()["balanced"])
    assert fused.shape == tiny_case.shape

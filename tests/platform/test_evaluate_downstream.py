"""The downstream probe over a dataset, without Ray: every input alike, what is kept, what fails."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd
from clinfuse_platform.evaluate_downstream import BOTH, measured
from clinfuse_platform.evaluate_methods import methods_of
from clinfuse_platform.evaluate_verb import add_arguments, jobs_of, run


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

"""Automatic brain and bone masks against known truth, as Dice: `python tests/benchmarks/masks.py [--patients N]`.

Truth: the embedded cohort's own masks (its simulated CT, aligned), and the brain mask of the 2 mm templates
(CLINFUSE_TEST_DATA, default ../shared/data). Writes tests/benchmarks/results/masks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from clinfuse_prep.cohort import make_cohort
from clinfuse_prep.geometry import resample_mask
from clinfuse_prep.masks.auto import METHODS, BrainInputs
from clinfuse_prep.masks.bone import bone_from_ct
from clinfuse_prep.masks.deepbet import deepbet_installed
from clinfuse_prep.nifti import read_nifti
from clinfuse_prep.raw import RawImage

from clinfuse.metrics.lesion import dice

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "masks.md"


def score(
    name: str, mr: RawImage, ct: RawImage | None, truth: dict[str, RawImage]
) -> list[dict[str, object]]:
    """Rows for one head: Dice and seconds of every method that its images allow."""
    rows: list[dict[str, object]] = []
    grid = mr.grid
    bone = None
    if ct is not None:
        start = time.perf_counter()
        bone = bone_from_ct(ct.volume, grid.spacing, grey8=False)[0]
        seconds = time.perf_counter() - start
        if "bone" in truth:
            value = dice(bone, truth["bone"].volume > 0.5)
            rows.append({"head": name, "ROI": "bone", "method": "ct-hu", "Dice": value, "s": seconds})
    methods = ["mr", *(["ct"] if ct is not None else []), *(["deepbet"] if deepbet_installed() else [])]
    inputs = BrainInputs(
        anatomy=mr.volume,
        grid=grid,
        case=name,
        ct=None if ct is None else ct.volume,
        bone=None if bone is None else bone.astype(np.uint8),
    )
    for method in methods:
        start = time.perf_counter()
        mask = METHODS[method](inputs)
        seconds = time.perf_counter() - start
        reference = resample_mask(truth["brain"].volume > 0.5, truth["brain"].grid, grid) > 0
        rows.append(
            {"head": name, "ROI": "brain", "method": method, "Dice": dice(mask, reference), "s": seconds}
        )
    return rows


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=4)
    patients = parser.parse_args().patients
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in make_cohort(Path(folder), patients=patients):
            files = {
                name: read_nifti(path / f"{name}.nii.gz", role=name)
                for name in ("mr", "ct_aligned", "brain", "bone")
            }
            rows += score(f"cohort {path.name}", files["mr"], files["ct_aligned"], files)
    templates = Path(os.environ.get("CLINFUSE_TEST_DATA", ROOT.parent / "shared" / "data")) / "templates_2mm"
    if templates.is_dir():
        truth = {"brain": read_nifti(templates / "brainmask.nii.gz", role="brain")}
        ct = read_nifti(templates / "ct_hu.nii.gz", role="ct")
        for name in ("t1", "t2", "pd"):
            rows += score(f"template {name}", read_nifti(templates / f"{name}.nii.gz", role=name), ct, truth)
    table = pd.DataFrame(rows)
    wide = table.pivot_table(index="head", columns=["ROI", "method"], values="Dice")
    seconds = table.groupby(["ROI", "method"])["s"].mean()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(markdown(wide, seconds), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def markdown(wide: pd.DataFrame, seconds: pd.Series) -> str:
    """The table as Markdown, with a last line of mean seconds."""
    names = [" ".join(column) for column in wide.columns]
    lines = ["# Automatic masks against truth (Dice)", "", "Made by `python tests/benchmarks/masks.py`.", ""]
    lines += ["| head | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for head, row in wide.iterrows():
        cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    lines.append("| mean s | " + " | ".join(f"{seconds[column]:.1f}" for column in wide.columns) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

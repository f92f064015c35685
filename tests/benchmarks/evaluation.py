"""What images are worth, measured: `python tests/benchmarks/evaluation.py [PART …] [--work DIR]`.

released: the released model beside formulas on every AANLIB patient, none of whom it has seen; all metrics.

aanlib: the fusion field's table on AANLIB patients held out by patient, for the formulas and for the learned baselines
trained here on the other patients (needs the pairs, see CLINFUSE_TEST_DATA). downstream: a segmentation network and a
landmark finder trained on MRI, CT, both as channels, and the fused images of several methods, on simulated patients
that no clinfuse model has seen. Each writes its table into tests/benchmarks/results.

What is done is kept in the work folder, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from clinfuse_platform.evaluate_recipes import default_source

from clinfuse import RESEARCH_USE

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs") / "benchmark-evaluation"
RELEASED = Path(__file__).parents[2] / "clinfuse" / "released"
BASELINE_STEPS, PROBE_STEPS = 1500, 1000
SLICES = 8  # of each AANLIB patient: the learned methods take seconds a slice
PATIENTS, SPACING_MM, SEED = 96, 3, 21  # another seed than the released model's patients
TRAIN_SPLIT = "0.6,0.04,0.36"
INPUTS = ("mri", "ct", "max", "prior")


def clinfuse(*words: object) -> None:
    """Run a verb."""
    subprocess.run([sys.executable, "-m", "clinfuse_platform.cli", *map(str, words)], check=True)


def unless(made: Path, *words: object) -> None:
    """Run a verb if what it makes is not there."""
    if not made.exists():
        clinfuse(*words)


def everyone(work: Path) -> Path:
    """The dataset of all AANLIB MRI-CT patients, as test cases."""
    data = work / "released" / "aanlib.zarr"
    prep = ["--split", "0,0,1", "--no-compare", "--workers", 0, "--resume"]
    unless(data / "manifest.parquet", "prep", default_source(), "--out", data, *prep)
    return data


def released(work: Path) -> str:
    """The released model on all AANLIB patients: clinical and field metrics, differences, parameters and time."""
    data, out = everyone(work), work / "released"
    options = ["--data", data, "--slices", SLICES, "--metrics", "all", "--out", out]
    clinfuse("evaluate", RELEASED, "refined", *options)
    patients = len(pd.read_parquet(data / "manifest.parquet"))
    return (
        "# The released model on AANLIB MRI-CT\n\n"
        f"`python tests/benchmarks/evaluation.py released`: {patients} patients, {SLICES} slices of each, none of whom "
        "the released model has seen (it was trained on simulated patients alone). `refined` is the target it "
        "learned to give, optimised per image. Conventions: `docs/evaluation.md`.\n\n"
        + (out / "table.md").read_text(encoding="utf-8").partition("## Systems named")[0].rstrip()
        + f"\n\n{RESEARCH_USE}\n"
    )


def aanlib(work: Path) -> str:
    """Formulas, five learned baselines trained on the other patients, and the table of all."""
    out, data, runs = work / "aanlib", work / "aanlib" / "aanlib.zarr", work / "runs"
    unless(data / "manifest.parquet", "evaluate", "--recipe", "aanlib", "--out", out)
    baselines = runs / "peers" / "baselines"
    training = ["--run", "peers", "--storage", runs, "--steps", BASELINE_STEPS, "--cpus-per-worker", 1]
    unless(baselines / "model_index.json", "train-baseline", data, *training)
    clinfuse("evaluate", baselines, "--recipe", "aanlib", "--data", data, "--slices", SLICES, "--out", out)
    splits = pd.read_parquet(data / "manifest.parquet")["split"].value_counts()
    return (
        "# The field's table on AANLIB MRI-CT\n\n"
        f"`python tests/benchmarks/evaluation.py aanlib`: {splits['test']} patients held out, {SLICES} slices of each; "
        f"the learned rows trained on {splits['train']} other patients, {BASELINE_STEPS} steps of 4 crops of 96² each, "
        "on one core. They are small reimplementations of ideas, not the authors' networks. Conventions: "
        "`docs/evaluation.md`.\n\n" + (out / "table.md").read_text(encoding="utf-8")
    )


def downstream(work: Path) -> str:
    """The probe's table and the differences that are more than chance."""
    from clinfuse_platform.evaluate_report import plain_markdown

    from clinfuse.evaluation import decided, paired_tests, summarise, to_markdown

    data, out = work / "cohort.zarr", work / "downstream"
    made = ["--patients", PATIENTS, "--spacing", SPACING_MM, "--seed", SEED]
    unless(work / "cohort" / "cohort.json", "cohort", "--out", work / "cohort", *made)
    unless(
        data / "manifest.parquet", "prep", work / "cohort", "--out", data, "--split", TRAIN_SPLIT, "--resume"
    )
    options = ["--bare", "--members", 1, "--data", data, "--downstream", PROBE_STEPS, "--out", out]
    clinfuse("evaluate", RELEASED, *INPUTS, *options)
    rows = pd.read_parquet(out / "downstream.parquet")
    shown = rows[rows["roi"].isin(("lesion", "lesion centre", "mean"))]
    splits = pd.read_parquet(data / "manifest.parquet")["split"].value_counts()
    minutes = rows.groupby("method")["seconds"].first() / 60
    tests = paired_tests(shown[shown["metric"].isin(("dice", "nsd", "landmark"))])
    return (
        "# Downstream: what an image is worth for finding lesions and landmarks\n\n"
        f"`python tests/benchmarks/evaluation.py downstream`: {PATIENTS} simulated patients at {SPACING_MM} mm "
        f"(tumours, bone tumours, strokes, haemorrhages, and one in eight without a lesion; T1, T1 with contrast, T2), "
        f"{splits['train']} to train on, {splits['test']} held out; {PROBE_STEPS} steps of 8 slices for each input, "
        f"{minutes.min():.0f} to {minutes.max():.0f} minutes on one core. The same network, first weights, slices and "
        "order for every input (but for the first layers where both are channels), one training each, and one τ of the "
        "surface Dice, the preset's. `released` is the model in clinfuse/released, one member, which saw none of "
        "these patients. Landmark errors in mm; a missed lesion counts with the grid's diagonal.\n\n"
        + to_markdown(summarise(shown))
        + "\n## Differences that are more than chance\n\nPaired Wilcoxon tests over patients, Holm-corrected within "
        "each metric; pairs not listed are undecided.\n\n" + plain_markdown(decided(tests)) + "\n"
    )


PARTS = {"released": released, "aanlib": aanlib, "downstream": downstream}


def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts asked for and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="released, aanlib or downstream; default: what can be done here",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR", help="where work is kept (%(default)s)"
    )
    args = parser.parse_args(words)
    if not set(args.parts) <= set(PARTS):
        parser.error(f"no such part: give {' or '.join(PARTS)}")
    here = [name for name in PARTS if name == "downstream" or os.environ.get("CLINFUSE_TEST_DATA")]
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.parts or here:
        text = PARTS[name](args.work.resolve())
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

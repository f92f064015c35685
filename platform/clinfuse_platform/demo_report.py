"""The demo's report: one self-contained page made from the files that the demo's steps left, and from its journal."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from clinfuse_prep.store import CaseStore

from clinfuse import RESEARCH_USE
from clinfuse.baselines import TRIVIAL
from clinfuse.case import Case
from clinfuse.evaluation.uncertain import error_and_regions
from clinfuse.metrics.uncertainty import reliability
from clinfuse.presets import load_presets
from clinfuse.report import (
    Curve,
    Section,
    case_panel,
    facts,
    figure,
    latency_bars,
    loss_curves,
    metric_table,
    page,
    panel_figure,
    reliability_diagram,
    step_bars,
    table,
)
from clinfuse.report.html import command
from clinfuse_platform.demo_cases import read_volume
from clinfuse_platform.demo_journal import SERVED, TIMED, Journal
from clinfuse_platform.evaluate_slices import with_picture
from clinfuse_platform.storage import write_atomic

USEFUL_DICE = 0.1
MEMORY_LIMIT_GB, TIME_LIMIT_SECONDS = 4.0, 360.0
NOTICE = f"{RESEARCH_USE} All CT images on this page are simulated CT."
SHOWN_METRICS = (
    ("ssim", "brain"),
    ("ssim", "bone"),
    ("psnr", "bone"),
    ("dice", "lesion"),
    ("nsd", "lesion"),
    ("hd95", "lesion"),
    ("seam", "borders"),
)
UNCERTAINTY_METRICS = ("ece", "ece_pooled", "brier", "coverage", "ause_ratio", "spearman")
METHOD_NAMES = {
    "ensemble": "clinfuse (3 members × 4 steps)",
    "mean": "mean of both",
    "max": "voxel-wise maximum",
    "mri": "MRI alone",
    "ct": "simulated CT alone",
    "hard_roi": "hard ROI composite",
    "prior": "fusion prior",
}


def write_report(journal: Journal, store: Path) -> Path:
    """Write report.html into the demo's folder and return its path."""
    sections = [
        Section("In short", _summary(journal, store)),
        Section("Test cases", _cases(journal, store)),
        Section("Against trivial baselines", _metrics(journal)),
        Section("Uncertainty", _calibration(journal, store)),
        Section("Training", _training(journal)),
        Section("Fronts of two presets", _fronts(journal)),
        Section("Teacher and student", _latency(journal)),
        Section("The served result", _served(journal, store)),
        Section("How each number came to be", _steps(journal)),
    ]
    words = "The whole job on the embedded cohort: simulated patients from the MNI152 template."
    path = journal.folder / "report.html"
    write_atomic(path, page("clinfuse demo", sections, notice=NOTICE, subtitle=words))
    return path


def _summary(journal: Journal, store: Path) -> str:
    manifest = CaseStore(store).manifest()
    splits = ", ".join(f"{int((manifest['split'] == s).sum())} {s}" for s in ("train", "val", "test"))
    latency = journal.result(TIMED)
    served = journal.result(SERVED)
    rows = {
        "patients": f"{len(manifest)} simulated, split by patient: {splits}",
        "voxels": f"{journal.settings['spacing_mm']:g} mm",
        "recipe": journal.settings["recipe"],
        "time": f"{journal.seconds:.0f} s for the steps before this page (goal: under {TIME_LIMIT_SECONDS:.0f} s)",
        "memory": f"at most {journal.peak_gb:.2f} GB in all processes together (goal: under {MEMORY_LIMIT_GB:.0f} GB)",
        "student": f"{latency['ratio']:.0f} times as fast as the guided teacher on the same slab",
        "service": f"{served['info']['members_answered']} of {served['info']['members_asked']} members answered "
        f"in {served['request_seconds']:.1f} s",
    }
    intro = (
        "<p>Anatomy is the MNI152 template, deformed and recoloured per patient; skull, scalp, lesions and the CT are "
        "simulated from it, and the CT is displaced against the MRI by a small known warp. The recipe is small: these "
        "pictures show that every part works, not how well a fully trained model does.</p>"
    )
    return intro + facts(rows)


def _cases(journal: Journal, store: Path) -> str:
    cases = CaseStore(store)
    html = (
        "<p>Each case is cut through its lesion. Radiological convention: the patient's right is on the picture's "
        "left. Fused and uncertainty are the calibrated ensemble's, preset balanced.</p>"
    )
    for case_id in cases.case_ids("test"):
        case = cases.read(case_id)
        panel = case_panel(**with_picture(case, picture_of(journal, case_id)))
        html += panel_figure(panel, f"Test case {case_id}: {_truth(case)}.")
    return html


def _truth(case: Case) -> str:
    """What the simulation knows of a case, in words."""
    truth = dict(case.attrs.get("truth", {}))
    lesion = dict(truth.get("lesion", {}))
    kind = str(lesion.get("kind", "lesion")).replace("_", " ")
    found = f"{kind}, {lesion.get('volume_ml', 0):.1f} ml" if case.has_lesion else "no lesion"
    moved = truth.get("mean_displacement_mm")
    return found + (f"; simulated CT displaced by {moved:.1f} mm on average" if moved is not None else "")


def _metrics(journal: Journal) -> str:
    summary = pd.read_parquet(journal.folder / "evaluate" / "summary.parquet")
    there = set(zip(summary["metric"], summary["roi"], strict=True))
    shown = [pair for pair in SHOWN_METRICS if pair in there]
    cases = int(summary["n"].max())
    note = (
        f"<p>Means over {cases} test case(s), with 95 % bootstrap intervals where there are two or more; best of each "
        "column in bold. Brain is compared with the MRI, bone with the simulated CT without its misregistration; all "
        "methods saw the displaced one. Read the columns together: MRI alone is perfect in the brain and useless in "
        "the bone, and ROI scores reward pasting; the seam index is the gradient at ROI borders that is in neither "
        "source. Lesion rows measure what the same frozen lesion head finds in each fused image.</p>"
    )
    dice = summary.loc[summary["metric"] == "dice", "mean"]
    if len(dice) and not dice.max() >= USEFUL_DICE:
        note += (
            "<p>With so little training the lesion head does not yet find these lesions in any image (Dice below "
            f"{USEFUL_DICE:g} throughout), so the lesion columns say nothing about the fusion here.</p>"
        )
    return note + metric_table(summary, columns=shown, labels=METHOD_NAMES)


def _calibration(journal: Journal, store: Path) -> str:
    folder = journal.folder / "runs" / "demo" / "ensemble"
    calibration = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    tolerance = float(calibration["tolerance"])
    curves, count = reliability_curves(journal, store, tolerance)
    caption = (
        f"Test cases, voxels by predicted probability that the error exceeds {tolerance:g} (image units; error against "
        "the target from the pair without misregistration). Fitted on validation cases only. Bars: share of voxels."
    )
    summary = pd.read_parquet(journal.folder / "evaluate" / "summary.parquet")
    there = set(zip(summary["metric"], summary["roi"], strict=True))
    shown = [
        (m, r) for r in ("head", "brain", "bone", "lesion") for m in UNCERTAINTY_METRICS if (m, r) in there
    ]
    models = summary[~summary["method"].isin(TRIVIAL)]
    words = (
        f"<p>Intervals should cover {100 * calibration['coverage']:.0f} % of the voxels. Fitted on "
        f"{calibration['cases']} validation case(s), so this is a demonstration of the machinery, not a guarantee.</p>"
    )
    numbers = uncertainty_table(models[models["metric"].isin(UNCERTAINTY_METRICS)]) if shown else ""
    return words + numbers + figure(reliability_diagram(curves, counts=count), caption)


def uncertainty_table(summary: pd.DataFrame) -> str:
    """Regions as rows, uncertainty metrics as columns."""
    wide = summary.pivot_table(index="roi", columns="metric", values="mean", sort=False)
    return table(wide.reset_index().rename(columns={"roi": "region"}))


def reliability_curves(
    journal: Journal, store: Path, tolerance: float
) -> tuple[dict[str, tuple[list[float], list[float]]], list[float]]:
    """Predicted against observed on the test cases, by region, and the count of voxels per bin of the whole head."""
    cases, preset = CaseStore(store), load_presets()["balanced"]
    doubts: dict[str, list[Any]] = {}
    events: dict[str, list[Any]] = {}
    for case_id in cases.case_ids("test"):
        picture = with_picture(cases.read(case_id), picture_of(journal, case_id))
        error, regions = error_and_regions(picture["case"], picture["fused"], preset)
        for name, mask in regions.items():
            doubts.setdefault(name, []).append(picture["uncertainty"][mask])
            events.setdefault(name, []).append(error[mask] > tolerance)
    curves: dict[str, tuple[list[float], list[float]]] = {}
    count: list[float] = []
    for name, parts in doubts.items():
        doubt, event = np.concatenate(parts), np.concatenate(events[name])
        found = reliability(np.clip(doubt, 0, 1), event, bins=10)
        full = found.count > max(30, 0.001 * doubt.size)
        curves[name] = (found.predicted[full].tolist(), found.observed[full].tolist())
        count = count or found.count[full].tolist()
    return curves, count


def picture_of(journal: Journal, case_id: str) -> Path:
    """The file with the ensemble's fused image and uncertainty that the evaluation kept of a case."""
    (picture,) = (journal.folder / "evaluate" / "images").glob(f"*-{case_id}.npz")
    return picture


def _training(journal: Journal) -> str:
    rows = pd.read_parquet(journal.folder / "runs" / "demo" / "metrics.parquet")
    curves = []
    for (job, phase), part in rows.groupby(["job", "phase"], sort=False):
        name = "loss" if part.get("loss", part["step"] * float("nan")).notna().any() else "segmentation"
        known = part[part[name].notna()]
        steps, values = known["step"].tolist(), known[name].tolist()
        curves.append(Curve(name=name, panel=f"{job}: {phase}", steps=steps, values=values))
    caption = "Training losses, by phase; two workers on Ray Train, each with its own shard of the batches."
    return figure(loss_curves(curves), caption)


def _fronts(journal: Journal) -> str:
    folder = journal.folder / "pareto"
    caption = (
        "Every trial of the sweep, and the front of each preset: what it costs one region to gain in another. "
        "More in pareto/pareto.html and sweep/report.html beside this page."
    )
    numbers = pd.read_parquet(folder / "numbers.parquet").drop(columns=["runs"])
    return figure((folder / "pareto.png").read_bytes(), caption, width="46rem") + table(numbers)


def _latency(journal: Journal) -> str:
    found = journal.result(TIMED)
    teacher = f"teacher, {found['teacher_steps']} guided steps"
    student = f"student, {found['student_steps']} steps"
    seconds = {teacher: found["seconds"]["teacher"], student: found["seconds"]["student"]}
    size = f"{found['slices']} slices of {found['shape'][0]} × {found['shape'][1]} voxels"
    times = f"the student is {found['ratio']:.0f} times as fast"
    caption = f"Seconds to fuse {size}, one after the other in one process; {times}."
    return figure(latency_bars(seconds), caption)


def _served(journal: Journal, store: Path) -> str:
    found = journal.result(SERVED)
    cases = CaseStore(store)
    case = cases.read(cases.case_ids("test")[0])
    fused, uncertainty = (read_volume(found["files"][key]) for key in ("fused", "uncertainty"))
    info, size = found["info"], " × ".join(map(str, case.shape))
    html = panel_figure(
        case_panel(case, fused=fused, uncertainty=uncertainty),
        "The NIfTI files that came back over HTTP, read again and laid over the case.",
    )
    rows = {
        "members": f"{info['members_answered']} of {info['members_asked']} answered",
        "service ready after": f"{found['start_seconds']:.1f} s",
        "request": f"{found['request_seconds']:.1f} s for {size} voxels, upload and reply included",
        "model": info["model_hash"],
        "files": ", ".join(Path(p).name for p in found["files"].values()),
    }
    return html + facts(rows)


def _steps(journal: Journal) -> str:
    seconds = {record.title: record.seconds for record in journal.records}
    caption = "Steps one after the other, and memory of all processes together (PSS, sampled every 2 s)."
    bars = figure(step_bars(seconds, journal.memory, limit_gb=MEMORY_LIMIT_GB), caption)
    rows = [
        {
            "step": r.title,
            "seconds": f"{r.seconds:.1f}",
            "processor s": f"{r.cpu_seconds:.1f}",
            "peak GB": f"{r.peak_gb:.2f}",
        }
        for r in journal.records
    ]
    commands = "".join(
        f"<h3>{escape(r.title)}</h3>" + "".join(command(line) for line in r.command.splitlines())
        for r in journal.records
        if r.command
    )
    machine = facts(journal.machine)
    words = "<p>The same results, step by step, from a shell (paths as in this demo):</p>"
    return bars + table(rows) + machine + words + commands

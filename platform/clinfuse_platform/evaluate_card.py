"""The model card, written from results: data, splits, metrics per ROI and lesion kind, calibration, limits, use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from clinfuse import RESEARCH_USE, __version__
from clinfuse_platform.evaluate_lesions import TITLE, cases_table, lesion_head_markdown
from clinfuse_platform.storage import write_atomic
from clinfuse_platform.variants import Variant

CLINICAL = ("ssim", "fsim", "psnr", "dice", "nsd", "hd95", "seam")
UNCERTAIN = ("ece", "ece_pooled", "brier", "coverage", "ause_ratio", "spearman")
BESIDE = ("hard_roi", "prior")
FEW_CASES = 10
Tables = Mapping[str, pd.DataFrame | None]


def write_card(
    variant: Variant,
    tables: Tables,
    out: Path,
    data: str,
    split: str,
    *,
    judged: bool = False,
    into_model: bool = False,
) -> Path:
    """Write model_card.md; with `into_model` also as the model folder's README.md.

    Args:
        variant: the model.
        tables: metric rows under "rows"; "shifts" and "downstream" where they were measured, else None.
        out: folder of the evaluation.
        data: the dataset evaluated on.
        split: the split evaluated.
        judged: the lesions were found by another model's lesion head.
        into_model: whether the card replaces that in the model folder.
    """
    from clinfuse.model_files import CARD

    text = card(variant, tables, data, split, judged=judged)
    file = out / "model_card.md"
    for place in (file, *([Path(variant.model) / CARD] if into_model else [])):
        write_atomic(place, text)
    return file


def card(variant: Variant, tables: Tables, data: str, split: str, *, judged: bool = False) -> str:
    """The card's Markdown; arguments as of `write_card`."""
    from clinfuse_platform.evaluate_costs import described, parameters

    folder = Path(variant.model)
    facts = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    rows = tables["rows"]
    assert rows is not None
    own = rows[rows["method"] == variant.label]
    cases = cases_table(data)
    parts = [
        "---\nlibrary_name: clinfuse\nlicense: apache-2.0\n---",
        "# clinfuse fusion model",
        f"**{RESEARCH_USE}**",
        f"A {described(variant)}, {parameters(variant):,} parameters, model hash `{facts['model_hash']}`, for fusing "
        f"co-registered head images. Evaluated with clinfuse {__version__}, preset {variant.preset.get('name')}.",
        "## Intended use",
        "Research on image fusion: comparing methods, reader studies, teaching. The fused image is to be read beside "
        "its sources and its uncertainty, never instead of them.",
        "Not for diagnosis, treatment planning or any decision about a person. Not for images that are not of the "
        "head, not for children unless shown otherwise, not for pairs off by more than a few millimetres.",
        "## Data and splits",
        data_part(cases, split, data),
        "## Training",
        "\n".join(f"- {key}: {value}" for key, value in sorted(facts.get("facts", {}).items()))
        or "- not recorded",
        f"## Results on the {split} split",
        results_part(rows, variant.label, split),
        "## By kind of lesion",
        kinds_part(own, cases),
        f"## {TITLE}",
        lesion_head_markdown(rows, cases, variant.label, judged=judged),
        "## Calibration",
        calibration_part(own, folder, split),
        *shift_part(tables.get("shifts"), variant.label),
        *downstream_part(tables.get("downstream"), variant.label),
        "## Limits",
        limits_part(own, rows, cases, split, folder),
    ]
    return "\n\n".join(parts) + "\n"


def data_part(cases: pd.DataFrame, split: str, data: str) -> str:
    """Counts per split, modalities, spacing, provenance."""
    from clinfuse_platform.evaluate_report import plain_markdown
    from clinfuse_platform.provenance import data_hash

    lines = [
        {
            "split": name,
            "patients": part["patient"].nunique(),
            "cases": len(part),
            "with lesion": int((part["lesion_ml"] > 0).sum()),
            "kinds": ", ".join(f"{k} {n}" for k, n in part["kind"].value_counts().items()),
        }
        for name, part in cases.groupby("split", sort=False)
    ]
    simulated = "simulated images" if cases["simulated"].all() else "images of people"
    spacing = " × ".join(f"{cases[f'spacing_{axis}_mm'].median():g}" for axis in "dhw")
    masks = ", ".join(
        f"{roi} {'/'.join(sorted(set(cases[f'{roi}_provenance'])))}" for roi in ("brain", "bone", "lesion")
    )
    return (
        f"Dataset `{data_hash(data)}`: {', '.join(sorted(set(cases['modalities'])))}, {simulated}, median spacing "
        f"{spacing} mm (slice, row, column). Masks: {masks}. Split by patient; no patient is in two splits.\n\n"
        f"{plain_markdown(pd.DataFrame(lines))}"
    )


def results_part(rows: pd.DataFrame, label: str, split: str) -> str:
    """The model's clinical metrics with intervals and goals, beside the hard ROI composite and the fusion prior."""
    from clinfuse.evaluation import summarise, to_markdown, with_goals

    shown = rows[rows["method"].isin((label, *BESIDE)) & rows["metric"].isin(CLINICAL)]
    return (
        to_markdown(with_goals(summarise(shown), split)) if len(shown) else "No clinical metric was measured."
    )


def kinds_part(own: pd.DataFrame, cases: pd.DataFrame) -> str:
    """The model's ROI metrics per kind of lesion, mean [interval], n; goals are stated for all kinds together."""
    from clinfuse.evaluation import summarise, to_markdown

    kinds = dict(zip(cases["case_id"], cases["kind"], strict=True))
    part = own[own["metric"].isin(CLINICAL)]
    if part.empty:
        return "No clinical metric was measured."
    by_kind = summarise(part.assign(method=part["case_id"].map(kinds).fillna("not stated")))
    return to_markdown(by_kind).replace("| method |", "| kind of lesion |", 1)


def calibration_part(own: pd.DataFrame, folder: Path, split: str) -> str:
    """What the uncertainty was fitted on, and how it did on the evaluated cases, with its goals."""
    from clinfuse.evaluation import summarise, to_markdown, with_goals

    file = folder / "calibration.json"
    if not file.is_file():
        return "Not calibrated: the uncertainty is relative only."
    known = json.loads(file.read_text(encoding="utf-8"))
    words = (
        "An error head, fitted on training cases, foretells the size of the error. What is made of it was fitted on "
        f"{known['cases']} validation cases: the probability that the error exceeds {known['tolerance']:g}, and "
        f"intervals of nominal coverage {known['coverage']:g}."
    )
    notes = "".join(f"\n- {note}" for note in known.get("notes", ()))
    summary = with_goals(summarise(own), split)
    part = summary[summary["metric"].isin(UNCERTAIN)]
    return f"{words}{notes}" + (f"\n\n{to_markdown(part)}" if len(part) else "")


def shift_part(shifts: pd.DataFrame | None, label: str) -> list[str]:
    """The model's sensitivity to misregistration beside the composite's."""
    from clinfuse_platform.evaluate_report import plain_markdown
    from clinfuse_platform.evaluate_shift import sensitivities

    if shifts is None:
        return []
    # a PSNR of identical images is capped, so its area says more about the cap than about the method
    shown = shifts["metric"].isin(CLINICAL) & shifts["metric"].ne("psnr")
    found = sensitivities(shifts[shifts["method"].isin((label, *BESIDE)) & shown])
    return ["## Misregistration", "Area: mean change over the range of amplitudes.", plain_markdown(found)]


def downstream_part(rows: pd.DataFrame | None, label: str) -> list[str]:
    """What a network trained on the fused images reaches, beside the sources."""
    from clinfuse.evaluation import summarise, to_markdown

    if rows is None:
        return []
    shown = rows[
        rows["method"].isin((label, "mri", "ct", "both as channels")) & ~rows["metric"].eq("false_volume")
    ]
    return ["## Downstream", to_markdown(summarise(shown))]


def limits_part(own: pd.DataFrame, rows: pd.DataFrame, cases: pd.DataFrame, split: str, folder: Path) -> str:
    """What the results do not show, and where the model does worse than a trivial method."""
    lines, count = [], own["case_id"].nunique()
    if cases["simulated"].all():
        lines.append("All images are simulated: nothing here says how the model does on images of people.")
    if count < FEW_CASES:
        lines.append(f"{count} cases were evaluated: intervals are wide, and few differences can be decided.")
    unseen = sorted(
        {"tumour", "bone_tumour", "haemorrhage", "stroke"} - set(cases.loc[cases["split"] == split, "kind"])
    )
    if unseen:
        lines.append(f"Kinds of lesion without an evaluated case: {', '.join(unseen)}.")
    missing = own[own["status"] != "ok"]
    if len(missing):
        lines.append(f"{len(missing)} values are empty or failed and are in no mean.")
    if not (folder / "calibration.json").is_file():
        lines.append("The uncertainty is not calibrated.")
    if len(own):
        lines += worse_than_composite(rows, str(own["method"].iloc[0]))
    lines.append("The preset named above was evaluated; others were not.")
    return "\n".join(f"- {line}" for line in lines)


def worse_than_composite(rows: pd.DataFrame, label: str) -> list[str]:
    """A line for each clinical metric in which a method is worse than the hard ROI composite, to three decimals."""
    from clinfuse.evaluation import summarise
    from clinfuse.evaluation.rows import LOWER_IS_BETTER

    lines, clinical = [], rows[rows["metric"].isin(CLINICAL)]
    summary = summarise(clinical) if len(clinical) else clinical
    for (metric, roi), part in summary.groupby(["metric", "roi"], sort=False):
        means = part.set_index("method")["mean"].round(3)
        if {label, "hard_roi"} <= set(means.index):
            own, hard = means[label], means["hard_roi"]
            worse = own > hard if metric in LOWER_IS_BETTER else own < hard
            if worse:
                lines.append(f"{metric} in {roi}: {own:.3f}, worse than the hard ROI composite's {hard:.3f}.")
    return lines

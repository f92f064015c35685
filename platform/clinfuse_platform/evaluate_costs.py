"""What each method costs: its parameters, and the seconds it took per case."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from clinfuse_platform.variants import Variant


def cost_table(rows: pd.DataFrame, variants: Sequence[Variant]) -> pd.DataFrame:
    """One line per method.

    Returns:
        method, what it is, parameters (all members; without the lesion head, which only measures), seconds per case
        (median), fastest, slowest, cases, failed. Seconds are of the actor that fused the case, with the threads it
        had; the first case of an actor includes loading the model.
    """
    lines = []
    for variant in variants:
        own = rows[rows["method"] == variant.label].drop_duplicates("case_id")
        seconds = own["seconds"].astype(float)
        lines.append(
            {
                "method": variant.label,
                "what": described(variant),
                "parameters": parameters(variant),
                "seconds per case": float(seconds.median()) if seconds.notna().any() else math.nan,
                "fastest": float(seconds.min()),
                "slowest": float(seconds.max()),
                "cases": len(own),
                "failed": int(((own["metric"] == "fusion") & own["status"].str.startswith("failed")).sum()),
            }
        )
    return pd.DataFrame(lines)


def described(variant: Variant) -> str:
    """What a method is, in a few words."""
    if variant.model:
        index = _index(Path(variant.model))
        members = len(index.get("members", []))
        steps = variant.steps or (index.get("student_steps") if index.get("kind") == "student" else None)
        words = f"{index.get('kind', 'model')}, {members} member{'s' if members != 1 else ''}"
        return f"{words}, {steps} steps" if steps else words
    facts = learned_facts(variant)
    if facts:
        return f"learned, {facts.get('steps', '?')} training steps"
    return "folder of results" if "=" in variant.baseline else "formula"


def parameters(variant: Variant) -> int:
    """Number of trained values; 0 for a formula or a folder of results."""
    if not variant.model:
        return int(learned_facts(variant).get("parameters", 0))
    folder = Path(variant.model)
    return sum(_count(folder / place / "model.safetensors") for place in _index(folder).get("members", []))


def learned_facts(variant: Variant) -> dict[str, Any]:
    """What a learned baseline's folder says of itself; empty for any other method."""
    from clinfuse.baselines.registry import folder_of

    folder = folder_of(variant.baseline)
    file = folder / "baseline.json" if folder is not None else None
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}


def _count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))

"""The manifest's row of a case: what a person wants to know of it without opening it."""

from __future__ import annotations

import json
from typing import Any

from clinfuse.case import Case
from clinfuse_prep.checks import volume_ml
from clinfuse_prep.content import content_digest


def manifest_row(case: Case, dtype: str = "float32") -> dict[str, Any]:
    """A case's row: ids, split, shape (D, H, W), spacing in mm, ROI volumes in mL and provenance, registration, and the
    digest of its content.

    Args:
        dtype: of the images in the store, see `content_digest`; datasets made before it have no column `content`.
    """
    findings = case.attrs.get("findings", [])
    row: dict[str, Any] = {
        "case_id": case.case_id,
        "patient": case.attrs.get("patient", ""),
        "split": case.attrs.get("split", ""),
        "state": "ok",
        "modalities": "+".join(case.modalities),
        "simulated": bool(case.attrs.get("simulated", False)),
        "findings": json.dumps(findings),
        "worst": max((f["severity"] for f in findings), key=("info", "warning", "error").index, default=""),
    }
    for axis, size, step in zip("dhw", case.shape, case.spacing, strict=True):
        row[f"size_{axis}"], row[f"spacing_{axis}_mm"] = size, step
    for roi, mask in case.masks.items():
        row[f"{roi}_ml"] = volume_ml(mask, case.spacing)
        row[f"{roi}_provenance"] = case.attrs.get("provenance", {}).get(roi, "absent")
    registration = case.attrs.get("registration") or {}
    row["registration"] = registration.get("method", "")
    row["registration_nmi"] = registration.get("nmi", float("nan"))
    row["registration_doubtful"] = bool(registration.get("doubtful", False))
    row["content"] = content_digest(case, dtype)
    return row

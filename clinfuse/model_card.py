"""The model card that a model folder is saved with; an evaluation writes a fuller one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clinfuse import RESEARCH_USE

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline


def model_card(pipeline: FusionPipeline) -> str:
    """A short model card in Markdown from the pipeline's own facts."""
    facts = "\n".join(f"- {key}: {value}" for key, value in sorted(pipeline.metadata.items()))
    sort = (
        "guided teacher" if pipeline.kind == "teacher" else f"{pipeline.student_steps}-step distilled student"
    )
    calibrated = "calibrated on validation cases" if pipeline.calibration else "not calibrated, relative only"
    if pipeline.error_head:
        calibrated += ", foretold by an error head from training cases"
    return f"""---
library_name: clinfuse
license: apache-2.0
---
# clinfuse fusion model

**{RESEARCH_USE}**

A {sort} of {len(pipeline.members)} member(s) for fusing co-registered head images (MRI with CT, SPECT or PET).
Uncertainty: {calibrated}. Presets: {", ".join(sorted(pipeline.presets))}.

Use: `FusionPipeline.from_pretrained(folder)(case, preset="balanced")`, or `clinfuse fuse --model folder …`.

## Facts
{facts or "- none recorded"}
"""

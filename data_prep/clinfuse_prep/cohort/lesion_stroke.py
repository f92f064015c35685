"""Ischaemic stroke in an arterial territory: dark on CT, grey-white border lost, dark on T1, bright on T2."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.anatomy import Head
from clinfuse_prep.cohort.fields import Grid, smooth_noise
from clinfuse_prep.cohort.lesion_base import Lesion, Painted, rounded
from clinfuse_prep.cohort.primitives import smooth_intersection
from clinfuse_prep.cohort.tissue import Canvas, pick

# territory: (apex of the cone, direction, half-angle in degrees), right side, template (x, y, z)
TERRITORIES: dict[str, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    "middle cerebral artery": ((18.0, -10.0, 4.0), (1.0, 0.0, 0.28), 44.0),
    "middle cerebral artery, upper division": ((18.0, 2.0, 8.0), (1.0, 0.35, 0.55), 32.0),
    "middle cerebral artery, lower division": ((20.0, -18.0, 4.0), (1.0, -0.85, 0.12), 33.0),
    "posterior cerebral artery": ((14.0, -44.0, 2.0), (0.28, -1.0, 0.05), 34.0),
}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Territory, side, size and age of one infarct."""
    name = sorted(TERRITORIES)[int(rng.integers(len(TERRITORIES)))]
    apex, direction, angle = TERRITORIES[name]
    side = "left" if rng.random() < 0.5 else "right"
    sign = np.array([-1.0 if side == "left" else 1.0, 1.0, 1.0])
    return {
        "territory": name,
        "side": side,
        "apex_mm": rounded((np.asarray(apex) + rng.uniform(-2, 2, 3)) * sign),
        "direction": rounded((np.asarray(direction) + rng.uniform(-0.08, 0.08, 3)) * sign),
        "half_angle_degrees": round(float(angle * rng.uniform(0.8, 1.05)), 3),
        "roughness_mm": round(float(rng.uniform(3.5, 6.0)), 4),
        "severity": round(float(rng.uniform(0.65, 0.9)), 4),
    }


class Stroke(Lesion):
    """A wedge from the deep white matter to the cortex, following brain tissue, not fluid."""

    kind = "stroke"
    covers = "infarcted brain tissue, without the sulci between"

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        p = self.parameters
        axis = np.asarray(p["direction"][::-1], np.float32)
        axis /= np.linalg.norm(axis)
        offset = at - np.asarray(p["apex_mm"][::-1], np.float32).reshape(3, 1, 1, 1)
        along = np.tensordot(axis, offset, axes=(0, 0))
        across = np.sqrt(np.maximum(np.square(offset).sum(axis=0) - np.square(along), 0))
        angle = np.deg2rad(p["half_angle_degrees"])
        cone = across * np.cos(angle) - along * np.sin(angle)
        border = p["roughness_mm"] * smooth_noise(grid, rng, (20.0, 10.0, 5.0))
        sign = -1.0 if p["side"] == "left" else 1.0
        midline = 4.0 - sign * at[2] + 0.4 * border
        tent = -12.0 - at[0] - 0.2 * (at[1] + 60) + 0.6 * border
        limited = smooth_intersection(smooth_intersection(cone + border, tent, 14.0), midline, 8.0)
        self.distance = np.asarray(np.maximum(limited, 7.0 + 0.5 * border - along), np.float32)
        self.texture = smooth_noise(grid, rng, (12.0, 6.0))

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        p = self.parameters
        solid = ndimage.gaussian_filter(np.clip(head.grey + head.white, 0, 1), 0.5)
        brain = np.maximum(head.fields["brain"] - 0.6, head.fields["cavity"])
        f = np.maximum(self.distance, brain)
        tissue = np.clip((solid - 0.25) / 0.5, 0, 1)
        whole = np.asarray(head.inside(f) * tissue, np.float32)
        share = np.float32(p["severity"])
        old_mr, old_hu = canvas.mr.copy(), canvas.hu.copy()
        mr = pick(canvas.contrast, 0.45, 0.47, 0.90) + 0.04 * self.texture
        hu = 18.0 + 0.12 * (old_hu - 30) + 1.2 * self.texture
        canvas.paint(whole, share * mr + (1 - share) * old_mr, share * hu + (1 - share) * old_hu)
        mask = (f <= 0) & (solid >= 0.5)
        return mask.astype(np.uint8), self.affected(whole)

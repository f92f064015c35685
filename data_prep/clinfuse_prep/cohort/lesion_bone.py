"""Bone tumour of the calvaria: lytic, sclerotic or mixed, with a soft-tissue part under scalp and dura."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.anatomy import Head, bone_distance
from clinfuse_prep.cohort.fields import Grid, smooth_noise, soft
from clinfuse_prep.cohort.head import base_grid, base_head
from clinfuse_prep.cohort.lesion_base import Lesion, Painted, blob, frame, radial_push, rounded
from clinfuse_prep.cohort.primitives import smooth_union
from clinfuse_prep.cohort.tissue import Canvas, pick

TYPES = ("lytic", "mixed", "sclerotic")
PLACES = {
    "frontal": (0.45, 1.0, 0.45),
    "parietal": (0.75, -0.45, 0.75),
    "temporal": (1.0, -0.15, 0.12),
    "occipital": (0.45, -1.0, 0.05),
}


def calvarial_point(direction: np.ndarray) -> list[float]:
    """The middle of the skull's thickness (x, y, z) mm along a direction (x, y, z) from the head's middle."""
    start = np.array([0.0, -18.0, 10.0])
    steps = np.arange(30.0, 130.0, 0.5)
    points = start[:, None] + direction[:, None] / np.linalg.norm(direction) * steps
    index = base_grid().to_index(points[::-1].astype(np.float32))
    sampled = {
        name: ndimage.map_coordinates(base_head()[name], index, order=1, mode="nearest")
        for name in ("cavity", "thickness")
    }
    return rounded(points[:, int(np.argmin(np.abs(sampled["cavity"] - sampled["thickness"] / 2)))])


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Place, size and make-up of one bone tumour."""
    place = sorted(PLACES)[int(rng.integers(len(PLACES)))]
    side = "left" if rng.random() < 0.5 else "right"
    direction = np.asarray(PLACES[place]) + rng.uniform(-0.15, 0.15, 3)
    direction[0] *= -1 if side == "left" else 1
    depth, wide, long = rng.uniform(8.0, 11.5), rng.uniform(14, 21), rng.uniform(15, 25)
    return {
        "type": TYPES[int(rng.integers(3))],
        "place": place,
        "side": side,
        "centre_mm": calvarial_point(direction),
        "radii_mm": rounded([depth, wide, long]),
        "axes": rounded(frame(direction), 6),
        "roughness": round(float(rng.uniform(0.13, 0.2)), 4),
        "matrix_hu": round(float(rng.uniform(1150, 1600)), 1),
    }


class BoneTumour(Lesion):
    """The mask is all that the tumour has replaced: bone, marrow, its extradural and subgaleal parts."""

    kind = "bone_tumour"
    covers = "destroyed or sclerotic bone and the soft-tissue part"
    within_brain = False

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        self.distance = blob(grid, at, self.parameters, rng)
        self.texture = smooth_noise(grid, rng, (6.0, 3.5))

    def push(self, at: FloatArray) -> FloatArray:
        radii = self.parameters["radii_mm"]
        out, self.pushed = radial_push(at, self.parameters["centre_mm"], 0.8 * max(radii), 0.18)
        return out

    def reshape_head(self, head: Head) -> None:
        """Lift the scalp over the tumour."""
        lifted = smooth_union(head.fields["skin"], self.distance - np.float32(4.5), 14.0)
        near = self.distance < 30
        head.fields["skin"] = np.where(near, lifted, head.fields["skin"])

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        contrast, p = canvas.contrast, self.parameters
        f = np.maximum(self.distance, head.fields["skin"] + 2.5)
        whole = head.inside(f)
        t = self.texture
        soft_mr = pick(contrast, 0.50, 0.98, 0.68) * (1 + 0.10 * t)
        canvas.paint(whole, soft_mr, 52.0 + 5.0 * t)
        mineral = whole * self._mineral(head)
        dark = pick(contrast, 0.13, 0.24, 0.12)
        canvas.paint(mineral, dark, p["matrix_hu"] * (1 + 0.10 * t), 1.0)
        lifted = np.clip(head.inside(f - 6.0) - whole, 0, 1)
        return (f <= 0).astype(np.uint8), self.affected(np.maximum(whole, lifted) + self._scalp(head))

    def _scalp(self, head: Head) -> FloatArray:
        """The scalp over the tumour, which it has lifted (D, H, W)."""
        return ((self.distance < 30) & (head.fields["cavity"] > 0)).astype(np.float32)

    def _mineral(self, head: Head) -> FloatArray:
        """Fraction of tumour matrix that is mineralised: fragments, a dense plaque, or both."""
        bone = bone_distance(head)
        kind, t = self.parameters["type"], self.texture
        if kind == "lytic":
            return soft(bone + 0.5, 2.0) * soft(1.25 - t, 0.5)
        spicules = 2.0 + 1.8 * t
        plaque = soft(bone - spicules - 1.5, 2.0)
        if kind == "sclerotic":
            return plaque * np.clip(0.92 + 0.08 * t, 0, 1)
        return plaque * soft(0.15 - t, 0.7)

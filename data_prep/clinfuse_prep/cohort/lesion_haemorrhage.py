"""Haemorrhage: a clot in the brain or a subdural crescent; bright on CT, on MR as its age decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.anatomy import Head
from clinfuse_prep.cohort.fields import Grid, smooth_noise
from clinfuse_prep.cohort.lesion_base import Lesion, Painted, blob, draw_site, frame, radial_push, rounded
from clinfuse_prep.cohort.tissue import Canvas, pick

SITES = {
    "putamen": (28.0, 0.0, 4.0),
    "thalamus": (15.0, -20.0, 8.0),
    "frontal lobe": (30.0, 36.0, 16.0),
    "parietal lobe": (34.0, -44.0, 34.0),
    "temporal lobe": (46.0, -24.0, -8.0),
}
# stage: (T1, T1 after contrast agent, T2) of the clot
STAGES = {
    "hyperacute": (0.60, 0.60, 0.70),
    "acute": (0.56, 0.56, 0.16),
    "early subacute": (1.02, 1.02, 0.22),
    "late subacute": (1.10, 1.10, 0.98),
}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Form, site, size and age of one haemorrhage."""
    site, side, centre = draw_site(rng, SITES, 3.0)
    largest = 12.0 if site == "thalamus" else 19.0
    form = "subdural" if rng.random() < 0.3 else "intracerebral"
    drawn = {
        "form": form,
        "stage": sorted(STAGES)[int(rng.integers(len(STAGES)))],
        "side": side,
        "clot_hu": round(float(rng.uniform(61, 73)), 2),
        "roughness": round(float(rng.uniform(0.14, 0.24)), 4),
        "push": round(float(rng.uniform(0.16, 0.28)), 4),
    }
    if form == "subdural":
        sign = -1 if side == "left" else 1
        return {
            **drawn,
            "direction": rounded(
                [sign * rng.uniform(0.7, 1.0), rng.uniform(-0.6, 0.5), rng.uniform(0.1, 0.5)]
            ),
            "thickness_mm": round(float(rng.uniform(8, 14)), 4),
            "spread_degrees": round(float(rng.uniform(38, 52)), 3),
        }
    axes = frame(np.array([0.25 * rng.normal(), 1.0, 0.25 * rng.normal()]))
    radii = rng.uniform(0.55 * largest, largest, 3) * (1.15, 0.8, 0.9)
    return {**drawn, "site": site, "centre_mm": centre, "radii_mm": rounded(radii), "axes": rounded(axes, 6)}


class Haemorrhage(Lesion):
    """An intracerebral clot with its thin rim of oedema."""

    kind = "haemorrhage"
    covers = "the clot, without the oedema"

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        self.distance = blob(grid, at, self.parameters, rng)
        self.texture = smooth_noise(grid, rng, (8.0, 4.0))

    def push(self, at: FloatArray) -> FloatArray:
        radius = float(np.mean(self.parameters["radii_mm"]))
        out, self.pushed = radial_push(at, self.parameters["centre_mm"], radius, self.parameters["push"])
        return out

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        f = np.maximum(self.distance, head.fields["cavity"] + 0.5)
        oedema = np.clip((6.0 - f) / 3.0, 0, 1) * np.clip(head.grey + head.white, 0, 1)
        canvas.paint(0.8 * oedema, pick(canvas.contrast, 0.48, 0.48, 0.95), 19.0)
        whole = head.inside(f)
        _paint_clot(canvas, whole, f, self.texture, self.parameters)
        return (f <= 0).astype(np.uint8), self.affected(np.maximum(oedema, whole))


def _paint_clot(
    canvas: Canvas, whole: FloatArray, f: FloatArray, texture: FloatArray, p: dict[str, Any]
) -> None:
    """Clotted blood, densest inside; on MR its centre lags behind its border in age."""
    t1, t1c, t2 = STAGES[p["stage"]]
    mr = pick(canvas.contrast, t1, t1c, t2)
    older = pick(canvas.contrast, 0.12, 0.12, -0.06)
    border = np.exp(-np.square((f + 1.5) / 3.0))
    canvas.paint(
        whole, np.clip(mr + older * border + 0.05 * texture, 0.08, 1.25), p["clot_hu"] + 2.2 * texture
    )


class Subdural(Lesion):
    """A crescent of blood between inner table and brain, the hemisphere pushed inwards."""

    kind = "haemorrhage"
    covers = "the subdural blood"
    within_brain = False

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        p = self.parameters
        direction = np.asarray(p["direction"][::-1], np.float32)
        direction /= np.linalg.norm(direction)
        offset = at - np.asarray((8.0, -18.0, 0.0), np.float32).reshape(3, 1, 1, 1)
        reach = np.sqrt(np.square(offset).sum(axis=0)) + np.float32(1e-3)
        self.outward = offset / reach
        cosine = np.tensordot(direction, self.outward, axes=(0, 0))
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        ripple = smooth_noise(grid, rng, (22.0, 11.0))
        taper = np.clip(
            1 - np.square(angle / (p["spread_degrees"] * (1 + 0.5 * p["roughness"] * ripple))), 0, 1
        )
        self.depth_mm = np.asarray(p["thickness_mm"] * np.sqrt(taper) * (taper > 0), np.float32)
        self.texture = smooth_noise(grid, rng, (9.0, 4.5))

    def push(self, at: FloatArray) -> FloatArray:
        shift = 0.85 * self.depth_mm * np.clip((np.abs(at[2]) - 1) / 24, 0, 1)
        self.pushed = (shift > 0.02).astype(np.uint8)
        return np.asarray(at + shift * self.outward, np.float32)

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        cavity = head.fields["cavity"]
        f = np.maximum(cavity + 0.8, -cavity - self.depth_mm)
        f = np.where(self.depth_mm > 1.2, f, np.float32(30))
        self.distance = np.asarray(f, np.float32)
        whole = head.inside(self.distance)
        _paint_clot(canvas, whole, self.distance, self.texture, self.parameters)
        return (f <= 0).astype(np.uint8), self.affected(whole)

"""Intra-axial tumour: necrotic core, irregular enhancing rim, oedema creeping along white matter, mass effect."""

from __future__ import annotations

from typing import Any

import numpy as np

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.anatomy import Head
from clinfuse_prep.cohort.fields import Grid, smooth_noise
from clinfuse_prep.cohort.lesion_base import Lesion, Painted, blob, draw_site, frame, radial_push, rounded
from clinfuse_prep.cohort.tissue import Canvas, pick

SITES = {
    "frontal": (28.0, 34.0, 18.0),
    "temporal": (46.0, -16.0, -16.0),
    "parietal": (30.0, -46.0, 38.0),
    "occipital": (26.0, -74.0, 10.0),
    "insular": (38.0, 4.0, 2.0),
    "cerebellar": (24.0, -62.0, -36.0),
}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Site, size and make-up of one tumour."""
    site, side, centre = draw_site(rng, SITES, 4.0)
    limit = 13.0 if site == "cerebellar" else 19.0
    return {
        "site": site,
        "side": side,
        "centre_mm": centre,
        "radii_mm": rounded(rng.uniform(0.62 * limit, limit, 3)),
        "axes": rounded(frame(rng.normal(size=3)), 6),
        "roughness": round(float(rng.uniform(0.16, 0.26)), 4),
        "rim_mm": round(float(rng.uniform(2.6, 4.6)), 4),
        "oedema_mm": round(float(rng.uniform(9.0, 18.0)), 4),
        "push": round(float(rng.uniform(0.15, 0.30)), 4),
    }


class Tumour(Lesion):
    """A high-grade glioma or metastasis; the mask is rim and core."""

    kind = "tumour"
    covers = "enhancing rim and necrotic core, without the oedema"

    def shape_on(self, grid: Grid, at: FloatArray, rng: np.random.Generator) -> None:
        self.distance = blob(grid, at, self.parameters, rng)
        self.texture = smooth_noise(grid, rng, (7.0, 3.5))
        self.spread = smooth_noise(grid, rng, (16.0, 8.0))

    def push(self, at: FloatArray) -> FloatArray:
        radius = float(np.mean(self.parameters["radii_mm"]))
        out, self.pushed = radial_push(at, self.parameters["centre_mm"], radius, self.parameters["push"])
        return out

    def paint(self, head: Head, canvas: Canvas) -> Painted:
        contrast, p = canvas.contrast, self.parameters
        f = np.maximum(self.distance, head.fields["cavity"] + 0.5)
        oedema = self._oedema(head, f)
        canvas.paint(0.85 * oedema, pick(contrast, 0.50, 0.50, 0.92), 20.0)
        whole = head.inside(f)
        rim_mr = pick(contrast, 0.62, 1.10, 0.66) * (1 + 0.14 * self.texture)
        canvas.paint(whole, rim_mr, 45.0 + 2.5 * self.texture)
        core = head.inside(self.distance + p["rim_mm"] * (1 + 0.32 * self.texture))
        core_mr = pick(contrast, 0.36, 0.34, 0.93) * (1 + 0.08 * self.spread)
        canvas.paint(core * whole, core_mr, 19.0 + 2.0 * self.spread)
        return (f <= 0).astype(np.uint8), self.affected(np.maximum(oedema, whole))

    def _oedema(self, head: Head, f: FloatArray) -> FloatArray:
        """Oedema fraction (D, H, W): white matter within reach, fingers between the gyri, none in grey matter."""
        reach = self.parameters["oedema_mm"] * (1 + 0.35 * self.spread)
        falloff = np.clip((reach - f) / 5.0, 0, 1) * (f > -2)
        own_side = np.sign(self.parameters["centre_mm"][0]) * head.at[2] > -2
        return np.asarray(falloff * np.clip(1.25 * head.white - 0.1, 0, 1) * own_side, np.float32)

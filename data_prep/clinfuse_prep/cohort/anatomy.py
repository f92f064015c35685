"""One patient's head: the base fields at deformed coordinates, painted into tissue from the skin inwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.fields import Grid, bump, smooth_noise, soft
from clinfuse_prep.cohort.head import base_grid, base_head
from clinfuse_prep.cohort.template import CSF_T1, load_template
from clinfuse_prep.cohort.tissue import TISSUES, Canvas, signal

FAR_MM = 30.0
FACE_BELOW_MM = 6.0
FACE = ("bone", "dense", "air", "cells", "orbit", "antrum", "globe", "lens", "muscle")


def draw_anatomy(rng: np.random.Generator) -> dict[str, Any]:
    """Habitus of one patient: thicknesses in mm, densities in HU, sinus size, calcifications."""
    return {
        "skull_scale": round(float(rng.uniform(0.85, 1.2)), 4),
        "table_mm": round(float(rng.uniform(1.4, 1.9)), 4),
        "cortical_hu": round(float(rng.uniform(1350, 1600)), 1),
        "marrow_hu": round(float(rng.uniform(480, 760)), 1),
        "fat_mm": round(float(rng.uniform(2.6, 4.2)), 4),
        "face_fat_mm": round(float(rng.uniform(4.0, 9.0)), 4),
        "sinus_mm": round(float(rng.uniform(-2.0, 1.2)), 4),
        "mucosa_mm": round(float(rng.uniform(0.4, 1.8)), 4),
        "subarachnoid_mm": round(float(rng.uniform(-0.3, 1.0)), 4),
        "pineal_mm": round(float(rng.uniform(1.0, 2.6)), 4),
        "choroid_mm": round(float(max(rng.uniform(-1.5, 2.6), 0)), 4),
        "falx_spots": int(rng.integers(0, 3)),
        "falx_at": [[round(float(v), 3) for v in rng.uniform(size=2)] for _ in range(3)],
    }


@dataclass(kw_only=True)
class Head:
    """A patient's geometry before painting.

    Attributes:
        grid: the patient's voxel grid.
        at: (3, D, H, W) template coordinates (z, y, x) mm of every voxel.
        fields: signed distances and thickness by name, each (D, H, W) float32.
        t1, grey, white: template maps at the patient's voxels, each (D, H, W) float32.
        habitus: what `draw_anatomy` gave.
    """

    grid: Grid
    at: FloatArray
    fields: dict[str, FloatArray]
    t1: FloatArray
    grey: FloatArray
    white: FloatArray
    habitus: dict[str, Any] = field(default_factory=dict)

    @property
    def voxel_mm(self) -> float:
        """Mean voxel edge: the width over which a surface is blurred."""
        return float(np.cbrt(np.prod(self.grid.spacing)))

    def inside(self, distance: NDArray[np.floating[Any]]) -> FloatArray:
        """Voxel fraction (D, H, W) inside a signed distance."""
        return soft(distance, 1.15 * self.voxel_mm)


def _sample(volume: FloatArray, index: FloatArray, where: np.ndarray, fill: float) -> FloatArray:
    """Linear interpolation of a volume at the chosen voxels, `fill` elsewhere; (D, H, W) float32."""
    out = np.full(where.shape, fill, np.float32)
    out[where] = ndimage.map_coordinates(volume, index, order=1, mode="nearest", output=np.float32)
    return out


def sample_head(grid: Grid, at: FloatArray, brain_at: FloatArray, habitus: dict[str, Any]) -> Head:
    """The base head and the template brain at a patient's voxels.

    Args:
        grid: the patient's grid.
        at: (3, D, H, W) template coordinates for skull, skin and face.
        brain_at: the same for the brain, which a lesion may have pushed aside.
        habitus: what `draw_anatomy` gave.
    """
    base, base_at = base_head(), base_grid()
    everywhere = np.ones(grid.shape, bool)
    skin = _sample(base["skin"], base_at.to_index(at.reshape(3, -1)), everywhere, FAR_MM).reshape(grid.shape)
    near = skin < 4
    face = near & (at[0] < FACE_BELOW_MM)
    fields = {"skin": skin}
    for names, where in ((("cavity", "thickness", "brain"), near), (FACE, face)):
        index = base_at.to_index(at[:, where])
        fields.update(
            {
                name: _sample(base[name], index, where, 0.0 if name == "thickness" else FAR_MM)
                for name in names
            }
        )
    fields["thickness"] *= np.float32(habitus["skull_scale"])
    fields["cavity"] -= np.float32(habitus["subarachnoid_mm"])
    template = load_template()
    within = fields["brain"] < 6
    index = template.grid.to_index(brain_at[:, within])
    maps = [
        _sample(volume, index, within, fill)
        for volume, fill in ((template.t1, CSF_T1), (template.grey, 0.0), (template.white, 0.0))
    ]
    return Head(grid=grid, at=at, fields=fields, t1=maps[0], grey=maps[1], white=maps[2], habitus=habitus)


def bone_distance(head: Head) -> FloatArray:
    """Signed distance to all bone: calvarial shell, facial bones, thin walls of orbit, antrum and nose, mm."""
    f = head.fields
    _, y, x = head.at
    shell = np.maximum(-f["cavity"], f["cavity"] - f["thickness"])
    orbit = np.maximum(np.abs(f["orbit"] - 1.2) - 1.2, y - 63)
    antrum = np.abs(f["antrum"] - 1.2) - 0.9
    septum = np.maximum(np.maximum(np.abs(x) - 1.0, f["air"] - 1.5), 16 - y)
    face = np.minimum(np.minimum(f["bone"], orbit), np.minimum(antrum, septum))
    return np.minimum(shell, np.maximum(np.maximum(face, -f["cavity"]), f["skin"] + 2.0))


def paint_head(head: Head, canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint skin, fat, muscle, orbits, bone, air, meninges and brain, in that order."""
    _paint_soft_parts(head, canvas, rng)
    _paint_orbit(head, canvas)
    _paint_bone(head, canvas, rng)
    _paint_air(head, canvas, rng)
    _paint_cavity(head, canvas)
    paint_brain(head, canvas)
    _paint_midline(head, canvas)


def _paint_soft_parts(head: Head, canvas: Canvas, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat, then muscle with fat planes."""
    f, habitus = head.fields, head.habitus
    z = head.at[0]
    depth = -f["skin"]
    canvas.tissue(head.inside(f["skin"]), "skin")
    low = 1 / (1 + np.exp((z + 40) / 8))
    fat_mm = habitus["fat_mm"] + (habitus["face_fat_mm"] - habitus["fat_mm"]) * low
    planes = smooth_noise(head.grid, rng, (15.0, 7.0))
    deep = 0.5 * np.maximum(soft(np.abs(planes) - 0.16, 0.2), soft(1.25 - planes, 0.5))
    canvas.tissue(head.inside(1.7 - depth), "fat")
    canvas.tissue(head.inside(1.7 + fat_mm * (1 + 0.18 * planes) - depth), "muscle")
    canvas.tissue(np.asarray(head.inside(4.0 + fat_mm - depth) * deep, np.float32), "fat")
    canvas.tissue(head.inside(np.maximum(f["muscle"], 3.2 + 0.8 * fat_mm - depth)), "muscle")


def _paint_orbit(head: Head, canvas: Canvas) -> None:
    """Orbital fat, muscles and nerve, globe with sclera and lens."""
    f = head.fields
    orbit = np.maximum(f["orbit"], f["skin"] + 2.5)
    canvas.tissue(head.inside(orbit), "fat")
    canvas.tissue(head.inside(np.maximum(f["muscle"], orbit)), "muscle")
    canvas.tissue(head.inside(f["globe"]), "sclera")
    canvas.tissue(head.inside(f["globe"] + 1.1), "vitreous")
    canvas.tissue(head.inside(f["lens"]), "lens")


def _paint_bone(head: Head, canvas: Canvas, rng: np.random.Generator) -> None:
    """Cortical bone, marrow (diploë) a table's thickness below its surface, ivory bone of the ear."""
    f, habitus = head.fields, head.habitus
    distance = bone_distance(head)
    solid = head.inside(distance)
    texture = smooth_noise(head.grid, rng, (9.0, 4.5))
    cortical = habitus["cortical_hu"] * (1 + 0.02 * texture)
    canvas.paint(solid, signal("cortical", canvas.contrast), cortical, 1.0)
    table = np.float32(habitus["table_mm"])
    marrow = soft(distance + table + 0.35, 1.6) * np.clip(0.85 + 0.12 * texture, 0, 1)
    marrow_hu = habitus["marrow_hu"] * (1 + 0.14 * texture)
    marrow_mr = signal("marrow", canvas.contrast) * (1 + 0.10 * texture)
    canvas.paint(marrow, marrow_mr, np.clip(marrow_hu, 320, 1100), 1.0)
    ivory = head.inside(np.maximum(f["dense"], distance))
    canvas.tissue(ivory, "dense", bone=1.0)


def _paint_air(head: Head, canvas: Canvas, rng: np.random.Generator) -> None:
    """Mucosa-lined sinuses and airways, honeycombed mastoid and ethmoid."""
    f, habitus = head.fields, head.habitus
    outside_brain = np.maximum(1.0 - f["cavity"], 0)
    honeycomb = np.abs(smooth_noise(head.grid, rng, 5.0)) - 0.32
    cells = head.inside(f["cells"] + 1.0 + 4 * outside_brain) * soft(-honeycomb, 0.5)
    canvas.tissue(0.92 * cells, "air")
    septum = np.where(head.at[1] > 14, 0.9 - np.abs(head.at[2]), np.float32(-FAR_MM))
    lumen = np.minimum(np.maximum(f["air"], septum), f["antrum"] - 0.4 * habitus["sinus_mm"])
    lumen = np.maximum(np.maximum(lumen, 1.2 - f["cavity"]), f["skin"] + 0.3)
    canvas.tissue(head.inside(lumen), "mucosa")
    canvas.tissue(head.inside(lumen + np.float32(habitus["mucosa_mm"])), "air")


def _paint_cavity(head: Head, canvas: Canvas) -> None:
    """Dura, then cerebrospinal fluid and the spinal cord below the template's lower end."""
    f = head.fields
    canvas.tissue(head.inside(f["cavity"] - 0.3), "dura")
    canvas.tissue(head.inside(f["cavity"] + 0.5), "csf")
    z, y, x = head.at
    below = np.clip(-62 - z, 0, None)
    cord = np.hypot(x, y + 45.5 + 0.14 * below) - 6.0
    cord = np.where(z < -66, np.maximum(cord, z + 66), FAR_MM)
    canvas.tissue(head.inside(np.maximum(cord, f["cavity"])), "white")


def brain_values(head: Head, contrast: str) -> tuple[FloatArray, FloatArray]:
    """MR signal and HU (D, H, W) of brain and ventricles from the template's maps."""
    grey, white = head.grey, head.white
    csf = np.clip(1 - grey - white, 0, 1)
    fitted = CSF_T1 * csf + np.float32(0.66) * grey + np.float32(0.86) * white
    detail = head.t1 - fitted
    if contrast == "T2":
        mr = 1.02 * csf + 0.56 * grey + 0.39 * white - 0.7 * np.clip(detail, -0.25, 0.25)
        mr = np.clip(mr, 0.1, 1.05)
    else:
        mr = np.float32(0.17) + (head.t1 - np.float32(0.27)) * np.float32(0.71 / 0.60)
        mr = np.clip(mr, 0.12, 1.0)
    hu = [TISSUES[name][2] for name in ("csf", "grey", "white")]
    density = hu[0] * csf + hu[1] * grey + hu[2] * white - 8 * np.clip(detail, -0.2, 0.2)
    return np.asarray(mr, np.float32), np.asarray(np.clip(density, 2, 44), np.float32)


def paint_brain(head: Head, canvas: Canvas) -> None:
    """Brain tissue with its sulci and ventricles over the fluid."""
    mr, hu = brain_values(head, canvas.contrast)
    canvas.paint(head.inside(np.maximum(head.fields["brain"] - 0.6, head.fields["cavity"])), mr, hu)


def _paint_midline(head: Head, canvas: Canvas) -> None:
    """Falx and superior sagittal sinus, calcified pineal gland, choroid plexus and falx."""
    z, y, x = head.at
    cavity = head.fields["cavity"]
    fluid = np.clip(1 - head.grey - head.white, 0, 1)
    outer = np.maximum(-cavity - 36, -12 - z)
    falx = head.inside(np.maximum(np.abs(x) - 0.7, np.maximum(outer, cavity))) * np.clip(1.6 * fluid, 0, 1)
    canvas.tissue(falx, "dura")
    sinus = np.maximum(np.abs(x) - 4.2 + 0.55 * np.clip(-cavity, 0, 9), np.maximum(-cavity - 7, cavity))
    canvas.tissue(
        head.inside(np.maximum(sinus, -22 - z + 0.35 * (y + 60))) * np.clip(1.4 * fluid, 0, 1), "venous"
    )
    habitus = head.habitus
    spots = [((2, -27, 0), habitus["pineal_mm"])]
    spots += [((7, -43, side * 23), habitus["choroid_mm"]) for side in (-1, 1)]
    for place in habitus["falx_at"][: habitus["falx_spots"]]:
        spots.append(((34 + 14 * place[0], 30 - 60 * place[1], 0), 1.4))
    for (cz, cy, cx), radius in spots:
        if radius > 0:
            r = np.sqrt(np.square(z - cz) + np.square((y - cy) / 1.3) + np.square(x - cx))
            canvas.tissue(0.8 * bump(r, radius), "calcium")

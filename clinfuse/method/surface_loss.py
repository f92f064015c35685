"""Differentiable lesion terms of Eq. 2: soft Dice, NSD at tolerance τ and HD95.

What is computed, and how far it is from the exact metric. Borders live on the *dual grid*: the corners
between voxels, where 2 (2D: 2², 3D: 2³) voxels per axis meet, with the image closed by one ring of zeros. A
probability map p stands for all its level sets {p > l}, l uniform in (0, 1), and each term is the mean over l
of what the exact metric counts on that level set:

- border mass of the prediction: |∇p| × cell volume (coarea formula), in mm (2D) or mm² (3D);
- its distance to the reference border: the exact Euclidean distance transform of S*, computed once;
- coverage of a reference border point s within t mm: max p − min p over the cells within t of s, which is
  the share of level sets with a border there, so the expected distance is ∫ (1 − max p + min p) dt. The cells
  within τ (at least 2 voxels) are all looked at, farther ones along a star of directions, up to `REACH_MM`.

Exact, soft, gap: for a binary p the level sets coincide and the soft values differ from the exact ones by
(i) the area element (equal to marching squares in 2D; in 3D an islet of a few voxels counts up to twice what
marching cubes gives it), (ii) the linear edge of the tolerance band, one voxel wide just outside τ, (iii) the
95th percentile, replaced by a mean over the percentiles 92 to 98 peaked at 95, (iv) reference-side distances
between the star's directions, found somewhat too long, and beyond `REACH_MM`, held there. Over random shapes
(shifted, dilated, replaced, irregular, with an islet; τ 2 mm; 1.5×0.8 mm and 2.5×1×1.5 mm voxels):

    correlation, mean gap      2D, binary p    2D, 0.5 mm edge    3D, binary p    3D, 0.5 mm edge
    soft Dice                  1.000, 0.00     0.999, −0.01       1.000, 0.00     0.999, −0.02
    soft NSD                   0.993, +0.04    0.993, +0.03       0.994, +0.02    0.994, +0.01
    soft HD95                  0.997, 0.0 mm   0.997, +0.1 mm     0.985, 0.0 mm   0.977, +0.2 mm

A p whose edge is blurred over more than about τ has a lower soft NSD and a longer soft HD95 than its 1/2 level
set (a 1 mm logistic edge: HD95 + 0.8 mm in 2D, + 1.0 mm in 3D): both ask for a sharp border as well as a true
one.

Legend: B batch; S spatial shape; C = Π(S+1) cells; N border cells of the reference; M neighbours; K shells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clinfuse.errors import ConfigError, GeometryError
from clinfuse.method import dual_grid

REACH_MM = 20.0
"""Farthest distance from a reference border point at which a predicted border is looked for."""
HD_SCALE_MM = 10.0
"""HD95 of this many mm gives an `hd95_loss` of 1/2."""
PERCENTILES = (0.92, 0.98)
"""The range over which the 95th percentile is smoothed."""
TIE_MM = 0.25
"""Softness of the maximum over the two directions of HD95."""


@dataclass(frozen=True, kw_only=True)
class LesionTarget:
    """Everything about the reference lesion S* that the losses need, computed once per case.

    Attributes:
        mask: (B, 1, *S) S* in {0, 1}.
        present: (B,) bool; False where S* is empty, and every loss is then exactly 0.
        distance_mm: (B, C) distance of each cell to the border of S* in mm, ascending.
        order: (B, C) the cells in that order.
        band: (B, C) in [0, 1], tolerance band in that order: 1 up to τ, falling to 0 within one voxel.
        neighbours: (B, N, M) cells around each border cell of S*, nearest first.
        area: (B, N) border length (mm) or area (mm²) of S* at each border cell; 0 fills up a short row.
        shells: indices into M where a shell of equal distance ends (K of them).
        radii_mm: the shells' distances (K) and the reach, in mm.
        spacing_mm, tau_mm: as given.
    """

    mask: Tensor
    present: Tensor
    distance_mm: Tensor
    order: Tensor
    band: Tensor
    neighbours: Tensor
    area: Tensor
    shells: tuple[int, ...]
    radii_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    tau_mm: float

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LesionTarget:
        """The same target on another device or in another floating-point type."""
        moved: dict[str, Any] = {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def lesion_target(mask: Tensor, spacing_mm: tuple[float, ...], tau_mm: float) -> LesionTarget:
    """Distances, tolerance band and border of the reference lesion S*.

    Args:
        mask: (B, 1, *S) S*, values above 1/2 belong to the lesion; its device and floating type are kept.
        spacing_mm: voxel spacing per spatial axis, in mm.
        tau_mm: border tolerance τ, in mm.

    Raises:
        GeometryError: mask is not (B, 1, *S) with 2 or 3 spatial axes, or the spacing does not fit.
        ConfigError: tau_mm is not positive.

    Reference: Eq. 2; the dual grid is that of Nikolov et al. 2018, arXiv:1809.04430 (surface Dice).
    """
    spacing = _checked(mask, spacing_mm, tau_mm)
    dtype = mask.dtype if mask.is_floating_point() else torch.get_default_dtype()
    reference = (mask > 0.5).to(dtype)
    with torch.no_grad():
        mass = dual_grid.border_mass(reference, spacing)
        cells = tuple(mass.shape[1:])
        distance = dual_grid.distance_mm(mass > 0, spacing).to(dtype)
        distance, order = distance.flatten(1).sort(dim=1, stable=True)
        band = (1 - (distance - tau_mm) / dual_grid.voxel_size(spacing)).clamp(0, 1)
        index, area = dual_grid.border_cells(mass.flatten(1))
        offsets, shells, radii = dual_grid.star(spacing, float(tau_mm), max(REACH_MM, 2 * tau_mm), cells)
        neighbours = dual_grid.neighbours(index, offsets, cells)
    return LesionTarget(
        mask=reference,
        present=reference.flatten(1).any(dim=1),
        distance_mm=distance,
        order=order,
        band=band,
        neighbours=neighbours,
        area=area,
        shells=shells,
        radii_mm=radii,
        spacing_mm=spacing,
        tau_mm=float(tau_mm),
    )


def dice_loss(prob: Tensor, target: LesionTarget) -> Tensor:
    """1 − soft Dice of the prediction and S*; equal to 1 − Dice for a binary prediction.

    Args:
        prob: (B, 1, *S) predicted lesion probability Ŝ in [0, 1].
        target: of the same batch.

    Returns: (B,) in [0, 1]; 0 where no lesion is present.

    Reference: L_Dice of Eq. 2.
    """
    p, s = matching(prob, target).flatten(1), target.mask.flatten(1)
    total = (p + s).sum(dim=1)
    dice = 2 * (p * s).sum(dim=1) / total.clamp_min(1e-6)
    return torch.where(target.present, 1 - dice, torch.zeros_like(dice))


def nsd_loss(prob: Tensor, target: LesionTarget) -> Tensor:
    """1 − soft normalised surface Dice at tolerance τ: border mass in the band, reference border covered.

    Args:
        prob: (B, 1, *S) predicted lesion probability Ŝ in [0, 1].
        target: of the same batch; holds τ.

    Returns: (B,) in [0, 1]; 0 where no lesion is present, 1 for an empty prediction.

    Reference: L_NSDτ of Eq. 2; exact counterpart: surface Dice at τ with border areas, arXiv:1809.04430.
    """
    p = matching(prob, target)
    return _nsd_loss(_sorted_mass(p, target), _spread(p, target, _shells_within_tau(target)), target)


def soft_hd95_mm(prob: Tensor, target: LesionTarget) -> Tensor:
    """Soft 95th-percentile Hausdorff distance in mm: the larger of both directions' soft percentiles.

    Args:
        prob: (B, 1, *S) predicted lesion probability Ŝ in [0, 1].
        target: of the same batch.

    Returns: (B,) mm, at least 0; 0 where no lesion is present, about `REACH_MM` for an empty prediction.
    """
    p = matching(prob, target)
    return _soft_hd95_mm(_sorted_mass(p, target), _spread(p, target, len(target.shells)), target)


def hd95_loss(prob: Tensor, target: LesionTarget) -> Tensor:
    """Soft HD95 d scaled to d / (d + 10 mm): 2 mm gives 1/6, 10 mm 1/2, never above 1.

    Args:
        prob: (B, 1, *S) predicted lesion probability Ŝ in [0, 1].
        target: of the same batch.

    Returns: (B,) in [0, 1); 0 where no lesion is present.

    Reference: L_HD95 of Eq. 2, as a distance-transform loss in the spirit of Karimi and Salcudean 2019,
    arXiv:1904.10030, with the percentile in place of the sum.
    """
    distance = soft_hd95_mm(prob, target)
    return distance / (distance + HD_SCALE_MM)


def lesion_losses(prob: Tensor, target: LesionTarget) -> tuple[Tensor, Tensor, Tensor]:
    """`dice_loss`, `nsd_loss` and `hd95_loss` at once, for less than their sum: borders are found once.

    Args:
        prob: (B, 1, *S) predicted lesion probability Ŝ in [0, 1].
        target: of the same batch.

    Returns: three (B,) tensors in [0, 1]; 0 where no lesion is present.

    Reference: the lesion bracket of Eq. 2.
    """
    p = matching(prob, target)
    mass, spread = _sorted_mass(p, target), _spread(p, target, len(target.shells))
    distance = _soft_hd95_mm(mass, spread, target)
    nsd = _nsd_loss(mass, spread[..., : _shells_within_tau(target)], target)
    return dice_loss(prob, target), nsd, distance / (distance + HD_SCALE_MM)


def _checked(mask: Tensor, spacing_mm: tuple[float, ...], tau_mm: float) -> tuple[float, ...]:
    spacing = tuple(float(value) for value in spacing_mm)
    if mask.ndim not in (4, 5) or mask.shape[1] != 1:
        raise GeometryError(
            "the lesion mask has the wrong shape",
            expected="(B, 1, H, W) or (B, 1, D, H, W)",
            found=f"{tuple(mask.shape)}",
        )
    if len(spacing) != mask.ndim - 2 or not all(0 < value < math.inf for value in spacing):
        raise GeometryError(
            "the spacing does not fit the lesion mask",
            expected=f"{mask.ndim - 2} positive values in mm",
            found=f"{spacing}",
        )
    if not 0 < tau_mm < math.inf:
        raise ConfigError("the border tolerance is not positive", expected="tau_mm > 0", found=f"{tau_mm=}")
    return spacing


def matching(prob: Tensor, target: LesionTarget) -> Tensor:
    """The prediction (B, 1, *S) in the target's floating type; GeometryError unless it has its shape."""
    if prob.shape != target.mask.shape:
        raise GeometryError(
            "prediction and reference lesion differ in shape",
            expected=f"{tuple(target.mask.shape)}",
            found=f"{tuple(prob.shape)}",
        )
    return prob.to(target.mask.dtype)


def _sorted_mass(p: Tensor, target: LesionTarget) -> Tensor:
    return dual_grid.border_mass(p, target.spacing_mm).flatten(1).gather(1, target.order)


def _spread(p: Tensor, target: LesionTarget, shells: int) -> Tensor:
    return dual_grid.spread(p, target.neighbours, target.shells[:shells])


def _shells_within_tau(target: LesionTarget) -> int:
    return sum(radius <= target.tau_mm * (1 + 1e-6) for radius in target.radii_mm[:-1])


def _nsd_loss(mass: Tensor, spread: Tensor, target: LesionTarget) -> Tensor:
    agreeing = (mass * target.band).sum(dim=1) + (target.area * spread[..., -1]).sum(dim=1)
    nsd = agreeing / (mass.sum(dim=1) + target.area.sum(dim=1)).clamp_min(1e-6)
    return torch.where(target.present, 1 - nsd, torch.zeros_like(nsd))


def _soft_hd95_mm(mass: Tensor, spread: Tensor, target: LesionTarget) -> Tensor:
    to_reference = _percentile95(target.distance_mm, mass)
    widths = torch.tensor(target.radii_mm, dtype=mass.dtype, device=mass.device).diff()
    distance, order = ((1 - spread) * widths).sum(dim=-1).sort(dim=1)
    to_prediction = _percentile95(distance, target.area.gather(1, order))
    larger = TIE_MM * (torch.logaddexp(to_reference / TIE_MM, to_prediction / TIE_MM) - math.log(2.0))
    return torch.where(target.present, larger, torch.zeros_like(larger))


def _percentile95(distance: Tensor, mass: Tensor) -> Tensor:
    """Mean of the percentiles around 95 (weights 6x(1−x)) of ascending distances with these masses."""
    share = mass.cumsum(dim=1) / mass.sum(dim=1, keepdim=True).clamp_min(1e-6)
    x = ((share - PERCENTILES[0]) / (PERCENTILES[1] - PERCENTILES[0])).clamp(0, 1)
    passed = x.square() * (3 - 2 * x)
    total = passed[:, -1:]
    steps = distance.diff(dim=1) * (total - passed)[:, :-1]
    return steps.sum(dim=1) + (distance[:, :1] * total)[:, 0]

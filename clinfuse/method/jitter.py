"""Registration jitter: draw a small rigid and smooth elastic warp in mm, then apply it (Section 3.3).

Drawing and acting are separate: `draw` makes a `Warp`, which holds only numbers, can be stored as JSON and
replayed; `apply` is deterministic. Lengths are mm, axes are those of the array: (D, H, W) or (H, W). The warp
acts about the image's centre, so that the same warp means the same motion on any grid over that centre.

Only the companion I_C is warped, though Section 3.3 names I_M, too: F lies on the MRI's grid and the target goes where
I_M goes, so the pair (T·I_M, I_C) is (I_M, T⁻¹·I_C) with the whole frame moved by T, which nothing in it can tell.

Convention: content moves by +translation along each axis and turns by +rotation. The displacement field d is
the way back, output(x) = image(x + d(x)), with x in mm from the centre:

    d(x) = R⁻¹(x − t) − x − e(x)

Legend: B batch; S spatial shape; dims 2 or 3; P control points per axis; R rotation; t translation; e elastic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as tf
from torch import Tensor

from clinfuse.errors import ConfigError, GeometryError
from clinfuse.ranges import require_ranges

CONTROL_POINTS = 8
"""Control points per axis; their lattice repeats, so that one warp serves images of any extent."""
RANGES: dict[str, tuple[float, float]] = {
    "translation_mm": (0, 50),
    "rotation_deg": (0, 45),
    "elastic_mm": (0, 20),
    "elastic_scale_mm": (5, 200),
}
MAX_STRETCH = 0.2
"""Largest elastic_mm / elastic_scale_mm; beyond, the elastic field might fold."""


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Amplitudes of the residual misregistration to expect.

    Attributes:
        translation_mm: largest shift along each axis, mm, 0 to 50; drawn uniformly.
        rotation_deg: largest turn about each axis, degrees, 0 to 45; drawn uniformly.
        elastic_mm: largest displacement by the elastic part, mm, 0 to 20; the peak is drawn uniformly below it.
        elastic_scale_mm: distance between control points, mm, 5 to 200; at least 5 × elastic_mm.

    Raises:
        ConfigError: a value outside its range, or an elastic part that might fold.
    """

    translation_mm: float = 1.5
    rotation_deg: float = 1.5
    elastic_mm: float = 0.5
    elastic_scale_mm: float = 25.0

    def __post_init__(self) -> None:
        require_ranges("jitter", self, RANGES)
        if self.elastic_mm > MAX_STRETCH * self.elastic_scale_mm:
            raise ConfigError(
                "jitter: the elastic part might fold",
                expected=f"elastic_mm <= {MAX_STRETCH} * elastic_scale_mm",
                found=f"elastic_mm={self.elastic_mm}, elastic_scale_mm={self.elastic_scale_mm}",
                todo="use a smaller amplitude or a larger scale",
            )

    def scaled(self, factor: float) -> JitterConfig:
        """The same jitter with its three amplitudes multiplied, for sensitivity curves."""
        return JitterConfig(
            translation_mm=self.translation_mm * factor,
            rotation_deg=self.rotation_deg * factor,
            elastic_mm=self.elastic_mm * factor,
            elastic_scale_mm=max(self.elastic_scale_mm, self.elastic_mm * factor / MAX_STRETCH),
        )


@dataclass(frozen=True, kw_only=True)
class Warp:
    """The numbers of one drawn warp.

    Attributes:
        translation_mm: shift of the content along each array axis, mm (dims values).
        rotation_deg: turn in degrees; 2D: one value, first axis towards the second; 3D: about each axis i,
            axis i+1 towards i+2 (cyclic), R = R₀R₁R₂.
        elastic_mm: coefficients of the cubic B-spline control points, mm, flat (dims × Pᵈⁱᵐˢ) with the
            displaced axis first; empty without elastic part.
        elastic_scale_mm: distance of the control points, mm.

    Raises:
        GeometryError: the counts do not belong together.
    """

    translation_mm: tuple[float, ...]
    rotation_deg: tuple[float, ...]
    elastic_mm: tuple[float, ...] = ()
    elastic_scale_mm: float = 25.0

    def __post_init__(self) -> None:
        dims = len(self.translation_mm)
        wanted = {2: 1, 3: 3}.get(dims)
        counts = (0, dims * CONTROL_POINTS**dims)
        if len(self.rotation_deg) != wanted or len(self.elastic_mm) not in counts:
            raise GeometryError(
                "the numbers of the warp do not belong together",
                expected=f"2 translations and 1 angle, or 3 and 3; {counts[0]} or {counts[1]} elastic values",
                found=f"{dims} translations, {len(self.rotation_deg)} angles, {len(self.elastic_mm)} elastic",
            )
        numbers = (*self.translation_mm, *self.rotation_deg, *self.elastic_mm, self.elastic_scale_mm)
        if not all(math.isfinite(v) for v in numbers) or self.elastic_scale_mm <= 0:
            raise GeometryError("the warp has non-finite numbers or a scale that is not positive")

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.translation_mm)

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return not any((*self.translation_mm, *self.rotation_deg, *self.elastic_mm))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able numbers; `from_dict` gives the same warp back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Warp:
        """The warp that `to_dict` described."""
        numbers: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**numbers)


def draw(config: JitterConfig, generator: torch.Generator, spatial_dims: int) -> Warp:
    """Draw a warp; zero amplitudes give the identity.

    The same generator state gives the same directions at any amplitude, so that a sensitivity curve compares
    like with like.

    Args:
        config: the amplitudes.
        generator: a CPU generator; it is advanced by the same count whatever the amplitudes.
        spatial_dims: 2 or 3.
    """
    angles = 1 if spatial_dims == 2 else 3
    rigid = 2 * torch.rand(spatial_dims + angles, generator=generator, dtype=torch.float64) - 1
    peak = float(torch.rand((), generator=generator, dtype=torch.float64)) * config.elastic_mm
    shape = (spatial_dims, *[CONTROL_POINTS] * spatial_dims)
    coefficients = torch.randn(shape, generator=generator, dtype=torch.float64)
    places = torch.arange(2 * CONTROL_POINTS, dtype=torch.float64) / 2
    largest = _spline(coefficients, [places] * spatial_dims).norm(dim=0).max()
    elastic = (coefficients * (peak / largest)).flatten().tolist() if peak > 0 else []
    return Warp(
        translation_mm=tuple((rigid[:spatial_dims] * config.translation_mm).tolist()),
        rotation_deg=tuple((rigid[spatial_dims:] * config.rotation_deg).tolist()),
        elastic_mm=tuple(elastic),
        elastic_scale_mm=float(config.elastic_scale_mm),
    )


def displacement(
    warp: Warp,
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The field d in mm for which output(x) = image(x + d(x)).

    Args:
        warp: what was drawn.
        shape: S, voxels per axis.
        spacing_mm: mm per axis.
        device, dtype: of the field.

    Returns: (dims, *S) mm along each array axis.

    Raises:
        GeometryError: shape or spacing do not have the warp's number of axes.
    """
    dims = warp.spatial_dims
    if len(shape) != dims or len(spacing_mm) != dims or not all(s > 0 for s in spacing_mm):
        raise GeometryError(
            "the warp does not fit the image",
            expected=f"{dims} spatial axes with a positive spacing each",
            found=f"shape {tuple(shape)}, spacing {tuple(spacing_mm)} mm",
        )
    axes = [
        (torch.arange(n, device=device, dtype=dtype) - (n - 1) / 2) * s
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    back = _rotation(warp).to(x).T
    shift = torch.tensor(warp.translation_mm, device=device, dtype=dtype)
    offset = (back @ shift).view(-1, *[1] * dims)
    d = torch.tensordot(back - torch.eye(dims, device=device, dtype=dtype), x, dims=1) - offset
    if warp.elastic_mm:
        coefficients = torch.tensor(warp.elastic_mm, device=device, dtype=dtype)
        lattice = coefficients.view(dims, *[CONTROL_POINTS] * dims)
        d = d - _spline(lattice, [axis / warp.elastic_scale_mm for axis in axes])
    return d


def apply(
    warp: Warp,
    image: Tensor,
    spacing_mm: tuple[float, ...],
    mode: str = "bilinear",
    padding: str = "border",
) -> Tensor:
    """The image moved by the warp, on the same grid; differentiable in the image.

    Args:
        warp: what was drawn.
        image: (B, C, *S) or (C, *S), any type; an axis of one voxel is moved within its plane only.
        spacing_mm: mm per spatial axis.
        mode: "bilinear" (trilinear in 3D) for images, "nearest" for masks.
        padding: what lies outside: "border" (the nearest voxel), "zeros" or "reflection".

    Returns: the image's shape and type; the identity returns the image itself.

    Raises:
        GeometryError: the image does not have the warp's number of axes.
        ConfigError: unknown mode or padding.
    """
    if mode not in ("bilinear", "nearest") or padding not in ("border", "zeros", "reflection"):
        raise ConfigError(
            "unknown way to resample",
            expected="mode bilinear or nearest; padding border, zeros or reflection",
            found=f"{mode=}, {padding=}",
        )
    dims = warp.spatial_dims
    if image.ndim not in (dims + 1, dims + 2):
        raise GeometryError(
            "the warp does not fit the image",
            expected=f"(C, *S) or (B, C, *S) with {dims} spatial axes",
            found=f"shape {tuple(image.shape)}",
        )
    shape = tuple(image.shape[-dims:])
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    d = displacement(warp, shape, spacing_mm, device=image.device, dtype=work)
    if warp.is_identity:
        return image
    batch = image.to(work).view(-1, *image.shape[-dims - 1 :])
    grid = _sampling_grid(d, spacing_mm).expand(len(batch), *shape, dims)
    moved = tf.grid_sample(batch, grid, mode=mode, padding_mode=padding, align_corners=True)
    return moved.view(image.shape).to(image.dtype)


def _sampling_grid(d: Tensor, spacing_mm: tuple[float, ...]) -> Tensor:
    """x + d in grid_sample's form: (1, *S, dims), last axis first, −1 and 1 at the outermost voxel centres."""
    coordinates = []
    for axis, (n, step) in enumerate(zip(d.shape[1:], spacing_mm, strict=True)):
        index = torch.arange(n, device=d.device, dtype=d.dtype)
        index = index.view([-1 if i == axis else 1 for i in range(d.ndim - 1)]) + d[axis] / step
        coordinates.append(index * (2 / max(n - 1, 1)) - 1)
    return torch.stack(coordinates[::-1], dim=-1)[None]


def _rotation(warp: Warp) -> Tensor:
    """R (dims, dims), float64."""
    dims = warp.spatial_dims
    planes = [(0, 1)] if dims == 2 else [(1, 2), (2, 0), (0, 1)]
    product = torch.eye(dims, dtype=torch.float64)
    for angle, (i, j) in zip(warp.rotation_deg, planes, strict=True):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = torch.eye(dims, dtype=torch.float64)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        product = product @ turn
    return product


def _spline(coefficients: Tensor, places: list[Tensor]) -> Tensor:
    """Periodic uniform cubic B-spline: (dims, P, …) at lattice coordinates per axis → (dims, *S)."""
    field = coefficients
    for place in places:
        weights = _spline_weights(place.to(field))
        field = torch.tensordot(field, weights, dims=([1], [1]))
    return field


def _spline_weights(place: Tensor) -> Tensor:
    """(n, P) weights of the control points at n lattice coordinates; rows sum to 1."""
    base = place.floor()
    u = place - base
    basis = [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]
    weights = place.new_zeros(len(place), CONTROL_POINTS)
    for k, value in enumerate(basis):
        index = (base.long() + k - 1) % CONTROL_POINTS
        weights.scatter_add_(1, index[:, None], value[:, None] / 6)
    return weights

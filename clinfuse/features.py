"""What one member sees of a case whatever the preset, and draws from it: seen once, drawn for every preset.

Legend: D, H, W as in clinfuse.case; *S spatial axes. A 2D model treats the axial slices as its batch, a 3D model the
whole volume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinfuse.case import Case, FloatArray
from clinfuse.combine import MemberSample
from clinfuse.errors import ConfigError
from clinfuse.method.denoiser import Denoiser, Seen, pad_to_multiple
from clinfuse.method.diffusion import DiffusionConfig
from clinfuse.method.finish import finished
from clinfuse.method.guidance import Guide
from clinfuse.method.inputs import Inputs
from clinfuse.method.jitter import JitterConfig, apply, draw
from clinfuse.method.prior import within_sources
from clinfuse.method.sampler import sample_encoded
from clinfuse.method.uncertainty import Slopes, registration_variance, slopes
from clinfuse.presets import Preset
from clinfuse.windows import window_starts

SLICE_BATCH = 16
UPTAKE_WEIGHT = 2.0


class Part(NamedTuple):
    """One batch of a case.

    Attributes:
        inputs: padded to what the network divides; the vector is empty (B, 0).
        undo: slices that take a padded (B, C, *S) back.
        seen: what the network's encoders and the fusion prior make of it.
        slopes: what registration variance takes from it, not padded.
        start: its first slice in the case.
    """

    inputs: Inputs
    undo: tuple[slice, ...]
    seen: Seen
    slopes: Slopes
    start: int


@dataclass(frozen=True, kw_only=True)
class Features:
    """What `FusionPipeline.encode` makes of a case for one member, and `sample_member` takes.

    Attributes:
        member: whose encoders made it.
        jitter: index of the draw that warped the companion, 0 for none.
        shape: (D, H, W) of the case.
        parts: its batches in order.
    """

    member: int
    jitter: int
    shape: tuple[int, int, int]
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors; what several share counts once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.parts)
        }
        return sum(storages.values())

    def check(self, case: Case, member: int, jitter: int) -> None:
        """Raises ConfigError unless these are of that member and jitter, and of a case of that shape."""
        found = (self.member, self.jitter, self.shape)
        if found != (member, jitter, case.shape):
            raise ConfigError(
                "features of something else",
                expected=f"member {member}, jitter {jitter}, shape {case.shape}",
                found=f"member {found[0]}, jitter {found[1]}, shape {found[2]}",
            )


def companion_seen(case: Case, seed: int, jitter_index: int, jitter: JitterConfig | None) -> Tensor:
    """The companion (D, H, W) as it is (index 0), or warped as the seed and the index draw it."""
    companion = as_tensor(case.companion)
    if jitter_index == 0:
        return companion
    generator = torch.Generator().manual_seed(seed_of(seed, jitter_index, -1))
    motion = draw(jitter or JitterConfig(), generator, 3)
    return apply(motion, companion[None, None], case.spacing)[0, 0]


def see(
    denoiser: Denoiser, case: Case, companion: Tensor, device: torch.device, window: int | None = None
) -> Iterator[Part]:
    """The parts of a case with its companion image (D, H, W) as it is or warped, each made when it is asked for.

    Args:
        window: slices that a 3D model sees at once, see clinfuse.windows; None: all.
    """
    spatial_dims = denoiser.config.spatial_dims
    starts = (
        window_starts(case.shape[0], window) if spatial_dims == 3 else range(0, case.shape[0], SLICE_BATCH)
    )
    for start in starts:
        size = SLICE_BATCH if spatial_dims == 2 else window or case.shape[0]
        inputs = _inputs(case, companion, slice(start, start + size), spatial_dims, device)
        with torch.no_grad():
            part = _part(denoiser, inputs, case.spacing[-spatial_dims:], start)
        yield part


def draw_part(
    denoiser: Denoiser,
    part: Part,
    presets: Sequence[Preset],
    seeds: Sequence[int],
    *,
    diffusion: DiffusionConfig,
    steps: int,
    finish: int,
    guide: Guide | None = None,
) -> tuple[FloatArray, ...]:
    """Fused, variance, residual and registration variance, (D, H, W) each; a preset and a seed per sample.

    `steps` are those of the sampler, `finish` those that end it (clinfuse.method.finish).
    """
    device = part.inputs.anatomy.device
    vectors = vectors_of(presets, part.inputs.ct)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        encoded = denoiser.condition(part.seen, vectors)
        registration = registration_variance(part.slopes, vectors)
    done = sample_encoded(
        [denoiser], [encoded], diffusion=diffusion, steps=steps, generators=generators, guide=guide
    )
    sources = part.seen.sources
    fused = finished(done.fused, part.inputs._replace(vector=vectors), finish)
    fused = within_sources(fused, part.inputs.anatomy, sources)
    maps = [*(volume[part.undo] for volume in (fused, done.variance, done.residual)), registration]
    outer = (0, 1) if denoiser.config.spatial_dims == 3 else (1,)
    return tuple(np.asarray(volume.squeeze(outer).cpu().numpy()) for volume in maps)


def vectors_of(presets: Sequence[Preset], ct: Tensor) -> Tensor:
    """Preset vectors (B, 6) for companions that are a CT (1) or not (0), (B,).

    Of SPECT and PET β counts twice: uptake lies amid the brain, whose term would take it back.
    """
    vectors = torch.tensor([preset.vector for preset in presets], device=ct.device)
    regions = vectors[:, :3].clone()
    regions[:, 1] *= torch.where(ct > 0, 1.0, UPTAKE_WEIGHT)
    return torch.cat([regions / regions.sum(dim=1, keepdim=True), vectors[:, 3:]], dim=1)


def as_sample(
    volumes: Sequence[FloatArray],
    *,
    member: int,
    steps: int,
    precision: str,
    sample: int = 0,
    jitter: int = 0,
) -> MemberSample:
    """What `draw_part` gave, as one draw."""
    fused, variance, residual, registration = volumes
    return MemberSample(
        fused=fused,
        variance=variance,
        registration=registration,
        residual_energy=float(np.mean(residual**2)),
        member=member,
        sample=sample,
        jitter=jitter,
        steps=steps,
        precision=precision,
    )


def seed_of(*parts: int) -> int:
    """A 63-bit seed from integers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array's memory as a tensor; a copy if it may not be written to (an array in Ray's object store), or is a
    view that torch cannot take (flipped)."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _inputs(case: Case, companion: Tensor, where: slice, spatial_dims: int, device: torch.device) -> Inputs:
    """Those axial slices as a batch (2D), or as one volume (3D)."""
    images = [as_tensor(case.anatomy)[where], companion[where].float()]
    masks = torch.stack([torch.from_numpy(m[where].astype(np.float32)) for m in case.masks.values()])
    if spatial_dims == 3:
        stacked = [*(image[None, None] for image in images), masks[None]]
    else:
        stacked = [*(image[:, None] for image in images), masks.transpose(0, 1)]
    anatomy, other, rois = (tensor.to(device) for tensor in stacked)
    count = len(anatomy)
    return Inputs(
        anatomy, other, rois, anatomy.new_empty(count, 0), anatomy.new_full((count,), float(case.has_ct))
    )


def _part(denoiser: Denoiser, inputs: Inputs, spacing_mm: tuple[float, ...], start: int) -> Part:
    grown = [pad_to_multiple(image, denoiser.config.multiple) for image in inputs[:3]]
    padded = Inputs(grown[0][0], grown[1][0], grown[2][0], inputs.vector, inputs.ct)
    seen = denoiser.see(padded)
    unpadded = padded.anatomy.shape == inputs.anatomy.shape
    sources = seen.sources if unpadded else denoiser.look(inputs)
    return Part(padded, grown[0][1], seen, slopes(sources, inputs.masks[:, 1:2], spacing_mm), start)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for branch in tree:
            yield from _tensors(branch)

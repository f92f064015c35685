"""The downstream probe: a small network that segments the lesion and finds landmarks, the same for every input.

What an image is worth for a task: the network, its initial weights, the patients, the order of slices and the number
of steps are the same whatever the images are (MRI, CT, both as channels, or the F of some method); only the images
change, and with two channels the layers that take them. A 2D network works slice by slice; landmarks are heat maps,
sharp in all three directions.

Legend: C channels, D, H, W as in clinfuse.case, K landmarks, B slices of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clinfuse.case import FloatArray, MaskArray
from clinfuse.errors import ConfigError, InputError
from clinfuse.evaluation.places import Point
from clinfuse.method.denoiser import pad_to_multiple
from clinfuse.method.lesion_head import segmentation_loss

HEAT_FOREGROUND = 60.0
MOST_SHIFT = 10
RARE = 4.0
PLACES, PLACE_SCALE_MM = 3, 80.0


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Size and training of the probe; the same for all inputs.

    Segmentation is trained on mirrored, moved and contrast-varied slices, the same draws for every input.

    Attributes:
        steps: optimiser steps.
        batch_size: slices per step; a third each through a lesion, near a landmark, and anywhere.
        learning_rate: peak of a one-cycle schedule.
        channels: per resolution.
        sigma_mm: width of a landmark's heat.
        seed: of weights and slices.
    """

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 6e-3
    channels: tuple[int, ...] = (12, 24, 48)
    sigma_mm: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not (self.learning_rate > 0 and self.sigma_mm > 0):
            raise ConfigError("probe: impossible settings", expected="all above 0", found=str(self))


@dataclass(frozen=True, kw_only=True)
class ProbeCase:
    """One case as the probe sees it.

    Attributes:
        image: (C, D, H, W) in [0, 1].
        lesion: (D, H, W) mask.
        spacing: (D, H, W) mm.
        landmarks: name → (d, h, w) voxel coordinates; empty where none are known. Those beyond the volume's borders,
            as in a slab, are learned from as far as their heat reaches in, and not measured.
    """

    image: FloatArray
    lesion: MaskArray
    spacing: Point
    landmarks: Mapping[str, Point] = field(default_factory=dict)


class Probe(nn.Module):
    """Two small U-Nets of one shape: one segments the lesion from the image alone, one makes a heat map per landmark.

    The latter also sees where a pixel lies (`with_places`): landmarks look alike left and right, and a slice alone
    does not tell its height. The former does not, or it would learn by heart where the training lesions lie.
    """

    def __init__(self, channels_in: int, names: Sequence[str], config: ProbeConfig) -> None:
        super().__init__()
        self.names, self.config, self.channels_in = tuple(names), config, channels_in
        self.segment = _net(channels_in, 1, config)
        self.locate = _net(channels_in + PLACES, len(self.names), config) if self.names else None

    def forward(self, image: Tensor) -> Tensor:
        """(B, C + 3, H, W) from `with_places` → logits (B, 1 + K, H, W): lesion, then each landmark's heat."""
        parts = [self.run(self.segment, image[:, : self.channels_in])]
        if self.locate is not None:
            parts.append(self.run(self.locate, image))
        return torch.cat(parts, dim=1)

    def run(self, net: nn.Module, image: Tensor) -> Tensor:
        """One of the networks on slices of any size; its logits begin at "nothing found"."""
        padded, undo = pad_to_multiple(image, 2 ** (len(self.config.channels) - 1))
        return (net(padded) - RARE)[(slice(None), slice(None), *undo[-2:])]

    @torch.no_grad()
    def maps(self, case: ProbeCase) -> FloatArray:
        """Probabilities (1 + K, D, H, W) of a case: lesion, then each landmark's heat."""
        self.eval()
        slices = torch.from_numpy(np.ascontiguousarray(with_places(case).swapaxes(0, 1)))
        return torch.cat([torch.sigmoid(self(part)) for part in slices.split(16)]).swapaxes(0, 1).numpy()


def _net(inputs: int, outputs: int, config: ProbeConfig) -> nn.Module:
    """A U-Net whose every layer is drawn from a seed of its own: other `inputs` change the first layers alone."""
    from monai.networks.nets.unet import UNet

    with torch.random.fork_rng(devices=[]):
        net = UNet(
            spatial_dims=2,
            in_channels=inputs,
            out_channels=outputs,
            channels=config.channels,
            strides=[2] * (len(config.channels) - 1),
            num_res_units=1,
            norm="BATCH",
        )
        drawn = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
        for number, layer in enumerate(drawn):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0]))
            layer.reset_parameters()
    return net


def train_probe(cases: Sequence[ProbeCase], config: ProbeConfig) -> Probe:
    """Train the probe.

    Args:
        cases: at least one, at least one of them with a lesion; all with the same landmarks.
        config: see `ProbeConfig`.

    Raises:
        InputError: no case has a lesion, cases differ in channels or landmarks, or the training diverged.
    """
    if not any(case.lesion.any() for case in cases):
        raise InputError(
            "no training case has a lesion",
            expected="lesion masks in the training split",
            found=f"{len(cases)} cases without one",
            todo="take a dataset with lesions, such as the embedded cohort (clinfuse cohort)",
        )
    kinds = {(case.image.shape[0], tuple(case.landmarks)) for case in cases}
    if len(kinds) != 1:
        raise InputError(
            "training cases differ", expected="one number of channels, one set of landmarks", found=str(kinds)
        )
    ((channels, names),) = kinds
    chosen, moves, *contrasts = np.random.default_rng(config.seed).spawn(2 + channels)
    probe = Probe(channels, names, config).train()
    groups = _groups(cases, config.sigma_mm)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1
    )
    for _ in range(config.steps):
        image, target = _batch(cases, groups, config, chosen)
        varied, mask = augmented(image[:, :channels], target[:, :1], moves, contrasts)
        loss = segmentation_loss(probe.run(probe.segment, varied), mask)
        if probe.locate is not None:
            heat = target[:, 1:]
            loss = loss + F.binary_cross_entropy_with_logits(
                probe.run(probe.locate, image), heat, weight=1 + HEAT_FOREGROUND * heat
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for net in probe.children():
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if not all(bool(weights.isfinite().all()) for weights in probe.state_dict().values()):
        raise InputError(
            "the probe's training diverged",
            expected="finite weights",
            found=f"others after {config.steps} steps",
            todo="take another --seed or other --downstream STEPS",
        )
    return probe.eval()


def augmented(
    image: Tensor, mask: Tensor, moves: np.random.Generator, contrasts: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """Slices (B, C, H, W) in [−1, 1] with their masks: mirrored and moved alike, contrast varied per channel.

    What moves out is gone, and background, −1, comes in; heads often fill an image to its border.

    Args:
        moves: draws mirroring and moving.
        contrasts: one per channel draws its contrast, so that a further channel changes no other draw.
    """
    axes = [axis for axis in (2, 3) if moves.random() < 0.5]
    shift = [int(moves.integers(-(n // MOST_SHIFT), n // MOST_SHIFT + 1)) for n in image.shape[2:]]
    drawn = np.stack([rng.uniform(-0.3, 0.3, len(image)) for rng in contrasts], axis=1)
    gamma = torch.from_numpy(np.exp(drawn).astype(np.float32))[:, :, None, None]
    varied = 2 * ((image + 1) / 2).clamp(0, 1) ** gamma - 1
    down, right = shift
    room = (right, -right, down, -down)  # negative room cuts
    return F.pad(varied.flip(axes), room, value=-1.0), F.pad(mask.flip(axes), room)


def with_places(case: ProbeCase, part: slice = slice(None)) -> FloatArray:
    """(C + 3, D, H, W): the image in [−1, 1] and the distance from the volume's middle along d, h, w, per 80 mm.

    Args:
        part: which slices.
    """
    places = [
        ((np.arange(n) - (n - 1) / 2) * s / PLACE_SCALE_MM).astype(np.float32)
        for n, s in zip(case.lesion.shape, case.spacing, strict=True)
    ]
    grids = np.meshgrid(places[0][part], *places[1:], indexing="ij")
    return np.concatenate([2 * case.image[:, part] - 1, np.stack(grids)]).astype(np.float32)


def heat_maps(case: ProbeCase, sigma_mm: float, part: slice = slice(None)) -> FloatArray:
    """(K, D, H, W) Gaussians of height 1 at the landmarks, σ in mm in every direction; `part` says which slices."""
    maps = []
    for point in case.landmarks.values():
        away = [
            (np.arange(n) - at) * s for n, at, s in zip(case.lesion.shape, point, case.spacing, strict=True)
        ]
        depth, row, column = (np.exp(-(x**2) / (2 * sigma_mm**2)).astype(np.float32) for x in away)
        maps.append(depth[part, None, None] * row[None, :, None] * column[None, None])
    shape = (len(range(*part.indices(case.lesion.shape[0]))), *case.lesion.shape[1:])
    return np.stack(maps) if maps else np.zeros((0, *shape), np.float32)


def padded_slice(
    case: ProbeCase, d: int, plane: tuple[int, int], sigma_mm: float
) -> tuple[FloatArray, FloatArray]:
    """Slice d of a case at the corner of a plane (H, W) that holds it: image (C + 3, H, W) and targets (1 + K, H, W).

    Beyond the case the image is background, −1, and the targets are 0; places go on.
    """
    room = [(0, 0), *((0, full - n) for full, n in zip(plane, case.lesion.shape[1:], strict=True))]
    seen = with_places(case, slice(d, d + 1))[:, 0]
    image = np.pad(seen[:-PLACES], room, constant_values=-1)
    places = np.pad(seen[-PLACES:], room, mode="reflect", reflect_type="odd")
    mask = case.lesion[d : d + 1].astype(np.float32)
    target = np.concatenate([mask, heat_maps(case, sigma_mm, slice(d, d + 1))[:, 0]])
    return np.concatenate([image, places]), np.pad(target, room)


Slice = tuple[int, int]


def _groups(cases: Sequence[ProbeCase], sigma_mm: float) -> list[list[Slice]]:
    """Slices (case, d) through a lesion, those near a landmark, and all; groups without a slice left out."""
    lesion, near, every = [], [], []
    for k, case in enumerate(cases):
        points = [point[0] for point in case.landmarks.values()]
        for d, mask in enumerate(case.lesion):
            every.append((k, d))
            if mask.any():
                lesion.append((k, d))
            if any(abs(d - at) * case.spacing[0] < 1.5 * sigma_mm for at in points):
                near.append((k, d))
    return [group for group in (lesion, near, every) if group]


def _batch(
    cases: Sequence[ProbeCase],
    groups: Sequence[Sequence[Slice]],
    config: ProbeConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Slices drawn in turn from the groups: images (B, C + 3, H, W), targets (B, 1 + K, H, W); see `padded_slice`."""
    high, wide = (max(case.lesion.shape[axis] for case in cases) for axis in (1, 2))
    images, targets = [], []
    for number in range(config.batch_size):
        group = groups[number % len(groups)]
        k, d = group[int(rng.integers(len(group)))]
        image, target = padded_slice(cases[k], d, (high, wide), config.sigma_mm)
        images.append(image)
        targets.append(target)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))

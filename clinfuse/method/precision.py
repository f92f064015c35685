"""Precision of the networks: what of a module is computed in bfloat16, and what never is.

A module's children are its networks (a denoiser's encoders and U-Net, a lesion head's net): these may compute in
bfloat16, by autocast, and answer in float32. What the module does around them stays float32, and so do weights, images,
priors, losses, ROI terms, gradients and the sampler's arithmetic.

What that changes in a fused image F in [0, 1], measured with the released model on the CPU, on middle slices of seven
AANLIB patients (unguided) and slabs of four simulated ones, three members, presets balanced, bone_tumor and stroke:

    largest change against float32       unguided    guided by a lesion's mask, 4 steps
    of F at a voxel                      0.0036      0.055
    of F, mean over an image             0.00004     0.0002
    of SSIM in brain and in bone         0.0002
    of a lesion's Dice                               0.002

Unguided, every voxel agrees within `TOLERANCE`. What a gradient through the lesion head changes at single voxels is
steep, so that there rounding shows: `GUIDED_TOLERANCE`. Without a lesion guided F agrees as unguided does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clinfuse.errors import ConfigError

PRECISIONS = ("float32", "bfloat16")
TOLERANCE = 0.01
"""Largest |F at bfloat16 − F at float32| that is promised of unguided sampling: nearly three times the measured."""
GUIDED_TOLERANCE = 0.1
"""The same of a single voxel of F guided by a lesion's mask."""
MEAN_TOLERANCE = 0.0005
"""Mean over the image of |F at bfloat16 − F at float32|, guided or not."""
Module = TypeVar("Module", bound=nn.Module)


def check_precision(name: str, what: str = "precision") -> None:
    """Raises ConfigError unless `name` is one of `PRECISIONS`; `what` says whose precision it is."""
    if name not in PRECISIONS:
        raise ConfigError(what, expected=" or ".join(PRECISIONS), found=str(name))


def at_precision(module: Module, precision: str) -> Module:
    """The module with its networks at that precision.

    Returns:
        The module itself for float32. For bfloat16 a view of it, made in microseconds: the weights are shared, names
        and values stay, and the module itself goes on as it was, in this thread and in others.
    """
    check_precision(precision)
    if precision == "float32":
        return module
    device_type = next(module.parameters()).device.type
    around = partial(in_bfloat16, device_type)
    networks = {name: replace_forward(copy.copy(own), around) for name, own in module.named_children()}
    view = copy.copy(module)
    view._modules = {**module._modules, **networks}
    return view


def in_bfloat16(device_type: str, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What `forward` answers when computed in bfloat16 where autocast holds that safe; float32."""
    with torch.autocast(device_type, dtype=torch.bfloat16):
        return forward(*args, **kwargs).float()


def replace_forward(module: nn.Module, around: Callable[..., Any]) -> nn.Module:
    """Make a module answer around(forward, …) until "forward" is deleted from its `__dict__`; returns it."""
    object.__setattr__(module, "forward", partial(around, module.forward))
    return module

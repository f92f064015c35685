"""How a step is computed, as far as it changes time and memory and (but for rounding) not what is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clinfuse.errors import ConfigError
from clinfuse.method.precision import check_precision, in_bfloat16, replace_forward


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Means against too little memory or time.

    Attributes:
        precision: "float32", or "bfloat16" inside the networks (losses, ROI terms and weights stay float32).
        accumulate: parts that a batch is computed in, one after the other; gradients add up before the step.
        average: decay of the exponential moving average of the weights that a phase ends with, 0 to 1; 0 leaves it
            out. Early on it is min(average, (1 + n)/(10 + n)) after n steps.
        checkpointing: the U-Net's blocks keep no activations and are computed again in the backward pass.
        channels_last: convolutions with channels as the innermost axis.
        compile: networks compiled by torch.compile.
    """

    precision: str = "float32"
    accumulate: int = 1
    average: float = 0.0
    checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision, "effort.precision")
        if self.accumulate < 1 or not 0 <= self.average < 1:
            raise ConfigError(
                "effort",
                expected="accumulate >= 1, 0 <= average < 1",
                found=f"{self.accumulate}, {self.average}",
            )

    def decay(self, step: int) -> float:
        """Decay of the average at a step (0, 1, …)."""
        return min(self.average, (1 + step) / (10 + step))


@contextmanager
def prepared(module: nn.Module, effort: Effort, device: str | torch.device) -> Iterator[None]:
    """Give the networks inside a module their form for training, and take it back at the end.

    Names and values of the weights stay, so that a checkpoint fits whatever the effort was.

    Args:
        module: its children are the networks (a denoiser's encoders and U-Net, a lesion head's net); what it does
            around them, in its own forward, stays as it is.
        effort: precision, checkpointing, channels_last and compile are read.
        device: where it is trained.
    """
    parts = list(module.children()) or [module]
    changed: list[nn.Module] = []
    for part in parts:
        if effort.checkpointing:
            blocks = [
                block for child in part.children() if isinstance(child, nn.ModuleList) for block in child
            ]
            changed += [replace_forward(block, partial(checkpoint, use_reentrant=False)) for block in blocks]
        if effort.precision == "bfloat16":
            changed.append(replace_forward(part, partial(in_bfloat16, torch.device(device).type)))
        if effort.channels_last:
            part.to(memory_format=_channels_last(part))  # type: ignore[call-overload]
        if effort.compile:
            part.compile()
    try:
        yield
    finally:
        for one in changed:
            del one.__dict__["forward"]
        for part in parts:
            part._compiled_call_impl = None
            if effort.channels_last:
                for parameter in part.parameters():
                    parameter.data = parameter.data.contiguous()


def _channels_last(part: nn.Module) -> torch.memory_format:
    volumes = any(parameter.ndim == 5 for parameter in part.parameters())
    return torch.channels_last_3d if volumes else torch.channels_last


def split(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """A batch in equal parts along its first axis.

    Raises:
        ConfigError: its size is not a multiple of `parts`.
    """
    if parts == 1:
        return [batch]
    sizes = {len(value) for value in batch.values()}
    if any(size % parts for size in sizes):
        raise ConfigError("effort.accumulate", expected="a divisor of batch_size", found=f"{parts}, {sizes}")
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: value[i] for name, value in chunks.items()} for i in range(parts)]

"""Where a phase of training stands, and how that is kept: safetensors and JSON, never pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinfuse.errors import ModelFolderError

MODULE, AVERAGE, OPTIMIZER = "module.safetensors", "average.safetensors", "optimizer.safetensors"


@dataclass
class TrainState:
    """Where a phase stands.

    Attributes:
        step: optimiser steps done.
        module: the network.
        optimizer: its optimiser.
        average: moving average of the network's weights by name, or None where none is kept.
    """

    step: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None = None

    def save(self, folder: str | Path) -> None:
        """Write the state into an existing folder."""
        folder = Path(folder)
        save_file(_contiguous(self.module.state_dict()), folder / MODULE)
        if self.average is not None:
            save_file(_contiguous(self.average), folder / AVERAGE)
        tensors, numbers = _flatten(self.optimizer.state_dict()["state"])
        save_file(tensors, folder / OPTIMIZER)
        (folder / "state.json").write_text(json.dumps({"step": self.step, "numbers": numbers}))

    def load(self, folder: str | Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            ModelFolderError: a file is missing or of another model.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "state.json").read_text())
            self.module.load_state_dict(load_file(folder / MODULE))
            tensors = load_file(folder / OPTIMIZER)
            if self.average is not None:
                kept = load_file(folder / AVERAGE)
                self.average = {name: kept[name].to(value) for name, value in self.average.items()}
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ModelFolderError(
                "the checkpoint cannot be read", found=type(error).__name__, todo="remove it and train again"
            ) from error
        packed = self.optimizer.state_dict()
        packed["state"] = _unflatten(tensors, facts["numbers"])
        self.optimizer.load_state_dict(packed)
        self.step = int(facts["step"])

    def start_average(self) -> None:
        """Begin the moving average with the weights as they are."""
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def move_average(self, decay: float) -> None:
        """average ← decay · average + (1 − decay) · weights; whole numbers (counts) are taken over."""
        for name, value in self.module.state_dict().items() if self.average is not None else ():
            average = self.average[name]  # type: ignore[index]
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)


def best_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that a phase stopped at this state would end with: the average where one is kept.

    Args:
        folder: written by `TrainState.save`.
    """
    average = folder / AVERAGE
    return load_file(average if average.exists() else folder / MODULE)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors.items()}


def _flatten(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors, numbers = {}, {}
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _unflatten(tensors: dict[str, Tensor], numbers: dict[str, float]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return state

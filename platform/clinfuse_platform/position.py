"""Where a job stands: phases done, step inside the current one, loss history; the content of its checkpoints.

position.json            phases done, current phase and step, history
<phase>.safetensors      each finished network
current/                 TrainState of the phase under way (safetensors and JSON)
files.json               size in bytes of each of these, which tells a whole checkpoint from a torn one
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from upath import UPath

    from clinfuse.training import TrainState

HISTORY_POINTS = 500
SIZES = "files.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints it knows


@dataclass
class Position:
    """How far a job is.

    Attributes:
        done: names of finished phases.
        phase: the phase under way, or None between phases.
        step: optimiser steps done in it.
        history: one row per recorded stretch of steps: phase, step, seconds per step, mean of
            each loss term, seconds elapsed since this worker began the phase.
    """

    done: list[str] = field(default_factory=list)
    phase: str | None = None
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, modules: Mapping[str, nn.Module], state: TrainState | None) -> Path:
        """Write a checkpoint into a new temporary folder, which the caller hands on or removes."""
        from safetensors.torch import save_file

        folder = Path(tempfile.mkdtemp(prefix="clinfuse-checkpoint-"))
        for name in self.done:
            weights = modules[name].state_dict()
            save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{name}.safetensors")
        if state is not None:
            (folder / "current").mkdir()
            state.save(folder / "current")
        (folder / "position.json").write_text(json.dumps(asdict(self)), encoding="utf-8")
        (folder / SIZES).write_text(json.dumps(sizes(folder)), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: Path) -> Position:
        """The position that a checkpoint folder tells."""
        return cls(**json.loads((folder / "position.json").read_text(encoding="utf-8")))

    def under_way(self, folder: Path) -> tuple[str, int, dict[str, Tensor]]:
        """The phase that this checkpoint is of (under way, or the last one done), its step and its best weights."""
        from safetensors.torch import load_file

        from clinfuse.training.state import best_weights

        if self.phase is not None:
            return self.phase, self.step, best_weights(folder / "current")
        phase = self.done[-1]
        step = max(row["step"] for row in self.history if row["phase"] == phase)
        return phase, int(step), load_file(folder / f"{phase}.safetensors")


def load_weights(module: nn.Module, folder: Path, name: str) -> None:
    """Give a network the weights it had when its phase was done."""
    from safetensors.torch import load_file

    module.load_state_dict(load_file(folder / f"{name}.safetensors"))


def sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file below a checkpoint folder, without the list of sizes itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SIZES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint folder holds all that was to be written into it."""
    try:
        expected = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(expected == sizes(folder))


def rescue(experiment: Path) -> Path | None:
    """The newest whole checkpoint where Ray Train's list of them was torn by a kill in the middle of writing it.

    Ray refuses to begin with a torn list, so that is removed. A list at a URL is written at once and cannot tear.

    Args:
        experiment: Ray Train's local experiment folder; nothing may be training in it.

    Returns:
        A folder for `Position.load`; None if the list is sound, or absent, or no checkpoint is whole.
    """
    snapshot = experiment / SNAPSHOT
    if not snapshot.exists():
        return None
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except ValueError:
        snapshot.unlink()
        return next(
            (path for path in sorted(experiment.glob("checkpoint_2*"), reverse=True) if is_whole(path)), None
        )
    return None


def remove_orphans(experiment: UPath) -> int:
    """Delete checkpoint folders that a killed worker left behind unregistered; returns how many.

    Args:
        experiment: Ray Train's experiment folder, local or at a URL, which holds its `SNAPSHOT`;
            nothing may be training in it.
    """
    snapshot = experiment / SNAPSHOT
    if not snapshot.exists():
        return 0
    registered = snapshot.read_text(encoding="utf-8")
    folders = [path for path in experiment.iterdir() if path.name.startswith("checkpoint_") and path.is_dir()]
    orphans = [path for path in folders if path.name not in registered]
    for path in orphans:
        path.fs.rm(path.path, recursive=True)
    return len(orphans)


class Stretches:
    """Collects per-step logs into at most 500 rows a phase, each the mean over a stretch of steps."""

    def __init__(self, phase: str, steps: int) -> None:
        self.phase = phase
        self.length = max(1, -(-steps // HISTORY_POINTS))
        self._open: list[Mapping[str, float]] = []

    def add(self, logs: Mapping[str, float], last: bool) -> dict[str, Any] | None:
        """Take one step's logs; the row of a completed stretch, else None."""
        self._open.append(logs)
        if len(self._open) < self.length and not last:
            return None
        names = {name for row in self._open for name in row if name != "step"}
        means: dict[str, Any] = {}
        for name in sorted(names):
            values = [row[name] for row in self._open if name in row]
            means[name] = float(sum(values) / len(values))
        row = {"phase": self.phase, "step": int(self._open[-1]["step"]), **means}
        self._open = []
        return row

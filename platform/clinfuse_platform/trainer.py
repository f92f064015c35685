"""Ray Train's trainer for PyTorch without the processes that our runs have no use for.

Ray Train starts an actor for Ray Datasets, which we do not use (workers read shards themselves), and one that frees the
workers' places should the controller die, which on a session that ends with the command nobody would take. Either is a
process of its own, 2.5 s of processor time at every start of a training.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

from clinfuse_platform.session import can_grow

NEVER_NEEDED = {"DatasetsCallback"}
NEEDED_ON_CLUSTERS = {"PlacementGroupCleanerCallback"}


class LeanTrainer(TorchTrainer):
    """A TorchTrainer (Ray Train v2); arguments as there. Should Ray name its callbacks anew, it is a plain one."""

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        spared = NEVER_NEEDED if can_grow() else NEVER_NEEDED | NEEDED_ON_CLUSTERS
        return [one for one in made if type(one).__name__ not in spared]

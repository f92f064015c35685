"""Ray Train's trainer for PyTorch without the processes that our runs have no use for.

Ray Train starts an actor for Ray Datasets, which we do not use (workers read shards themselves); one that frees the
workers' places should the controller die, which on a session that ends with the command nobody would take; and one that
asks the cluster's autoscaler for nodes, which on one machine nobody would answer. Each is a process of its own, 2 s of
processor time or more at every start of a training, and for the last the workers wait.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from clinfuse_platform.session import can_grow

NEVER_NEEDED = {"DatasetsCallback"}
NEEDED_ON_CLUSTERS = {"PlacementGroupCleanerCallback"}


class LeanTrainer(TorchTrainer):
    """A TorchTrainer (Ray Train v2); arguments as there. Should Ray name its callbacks anew, it is a plain one."""

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        spared = NEVER_NEEDED if can_grow() else NEVER_NEEDED | NEEDED_ON_CLUSTERS
        return [one for one in made if type(one).__name__ not in spared]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = settings.get("scaling_policy")
        if not can_grow() and type(policy) is FixedScalingPolicy:
            settings["scaling_policy"] = TheseNodes(policy.scaling_config)
        return super()._initialize_and_run_controller(**settings)  # type: ignore[misc]


class TheseNodes(FixedScalingPolicy):
    """A fixed number of workers on the nodes there are; no other nodes are asked for."""

    def _send_resource_request(self) -> None:
        """Ask nobody."""

    _maybe_send_resource_request = _cancel_resource_request = _send_resource_request

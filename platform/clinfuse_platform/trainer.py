"""Ray Train's trainer for PyTorch without the processes that our runs have no use for.

Ray Train runs its controller as an actor, which has to import PyTorch anew before the first worker can start; here it
runs in the process that called `fit`, with which a training ends anyway. Ray Train starts an actor for Ray Datasets,
which we do not use (workers read shards themselves); one that frees the workers' places should the controller's actor
die, which they do by themselves when this process ends; and one that asks the cluster's autoscaler for nodes, which on
one machine nobody would answer. Each is a process of its own, 2 to 5 s of processor time at every start of a training.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from logging import FileHandler, Formatter, Handler, NullHandler
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import ray
from clinfuse_prep.session import can_grow
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.logging.logging import LoggingManager

NEVER_NEEDED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
_LOGGING = threading.Lock()


class LeanTrainer(TorchTrainer):
    """A TorchTrainer (Ray Train v2); arguments as there. A KeyboardInterrupt stops the workers and is raised on."""

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in made if type(one).__name__ not in NEVER_NEEDED]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = settings.get("scaling_policy")
        if not can_grow() and type(policy) is FixedScalingPolicy:
            settings["scaling_policy"] = TheseNodes(policy.scaling_config)
        os.environ[ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR] = "0"
        log_to_session()
        controller = ControllerHere(**settings)
        # asyncio.run would hold an interrupt back while workers are waited for
        loop = asyncio.new_event_loop()
        task = loop.create_task(controller.run())
        try:
            loop.run_until_complete(task)
        except BaseException:
            task.cancel()
            controller.stop()
            raise
        finally:
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.close()
        return controller.get_result()


class GroupHere(WorkerGroup):
    """Workers whose controller is no actor, so that none of them can ask it anything; they never do."""

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        try:
            super()._start_impl(worker_group_state_builder)
        except KeyboardInterrupt:  # other errors are seen to by Ray
            worker_group_state_builder.shutdown()
            raise

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        started = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[index] for name, values in train_context_args.items()},
            )
            for index, worker in enumerate(workers)
        ]
        ray.get(started)
        self._decorate_worker_log_file_paths(workers)


class ControllerHere(TrainController):
    """Ray Train's controller in this process."""

    worker_group_cls = GroupHere

    def stop(self) -> None:
        """End the workers, if there are any."""
        if self._worker_group is not None and self._worker_group.has_started():
            self._worker_group.abort()


class TheseNodes(FixedScalingPolicy):
    """A fixed number of workers on the nodes there are; no other nodes are asked for."""

    def _send_resource_request(self) -> None:
        """Ask nobody."""

    _maybe_send_resource_request = _cancel_resource_request = _send_resource_request


def log_to_session() -> None:
    """Let Ray Train's log go to a file of the session, and not to the console, where our own lines tell what happens.

    Ray Train's own set-up is for one controller in a process: when several begin at once, as an ensemble's members do,
    its locks wait for each other for ever.
    """
    place = Path(LoggingManager.get_log_directory() or gettempdir())
    log = logging.getLogger("ray.train")
    with _LOGGING:
        ours = [one for one in log.handlers if isinstance(one, FileHandler)]
        if any(Path(one.baseFilename).parent == place for one in ours):
            return
        for one in ours:  # of a session that is over
            log.removeHandler(one)
            one.close()
        try:
            place.mkdir(parents=True, exist_ok=True)
            file: Handler = FileHandler(place / f"ray-train-app-controller-{os.getpid()}.log")
        except OSError:  # the session is another user's
            file = NullHandler()
        file.setFormatter(Formatter("%(asctime)s %(levelname)s %(filename)s:%(lineno)s %(message)s"))
        log.addHandler(file)
        log.setLevel(logging.INFO)
        log.propagate = False

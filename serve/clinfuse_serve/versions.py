"""The model version that a replica serves: a new one is loaded beside the old one, then taken, then the old one goes.

Serve hands the wanted folder to every replica as user_config, also to replicas that start later. Members load it and
keep the versions that an aggregator may still ask for; an aggregator changes over once every member has the new one.
So an answer never mixes members of two versions, and no request fails meanwhile. A version that a replica cannot use
is refused, and the one that is served stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse.errors import ConfigError
from clinfuse_serve.served_model import ServedModel, read_model

if TYPE_CHECKING:
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_serve.ray_backend import RayBackend
    from clinfuse_serve.service import FusionService

KEPT = 2
LOOK_S = 0.2
LOG = logging.getLogger("clinfuse.serve")


class WrongVersionError(RuntimeError):
    """A member was asked for a model version that it does not have."""


def refused(error: Exception) -> str:
    """Log why a version cannot be used here; returns it in a sentence."""
    LOG.error("a model version is refused", exc_info=error)
    return str(error) or type(error).__name__


def wanted_folder(user_config: Mapping[str, Any]) -> str:
    """The model folder in a replica's user_config."""
    folder = user_config.get("model")
    if not isinstance(folder, str):
        raise ConfigError("user_config names no model", expected="{model: FOLDER}", found=str(user_config))
    return folder


class LoadedVersions:
    """Pipelines of a member: the newest two versions, more only while they are in use."""

    def __init__(self, device: str, precision: str = "float32") -> None:
        self.device, self.precision = device, precision
        self._loaded: OrderedDict[str, FusionPipeline] = OrderedDict()

    def load(self, folder: str) -> str:
        """Load a folder unless it is there; returns its hash."""
        from clinfuse.pipeline import FusionPipeline

        model_hash = read_model(folder).model_hash
        if model_hash not in self._loaded:
            self._loaded[model_hash] = FusionPipeline.from_pretrained(
                folder, device=self.device, precision=self.precision
            )
        self._loaded.move_to_end(model_hash)
        return model_hash

    @property
    def crowded(self) -> bool:
        """Whether there are more than two."""
        return len(self._loaded) > KEPT

    def forget(self, in_use: Collection[str]) -> None:
        """Drop the oldest until two are left; none that is in use, and not the newest."""
        for model_hash in self.hashes()[:-1]:
            if self.crowded and model_hash not in in_use:
                del self._loaded[model_hash]

    def hashes(self) -> list[str]:
        """Versions there, newest last."""
        return list(self._loaded)

    def get(self, model_hash: str) -> FusionPipeline:
        """The version asked for, or the newest for ""; raises WrongVersionError."""
        if not model_hash:
            return next(reversed(self._loaded.values()))
        if model_hash not in self._loaded:
            raise WrongVersionError(f"version {model_hash} is not here")
        return self._loaded[model_hash]


async def change_over(service: FusionService, backend: RayBackend, model: ServedModel) -> None:
    """Serve another version once every member has it; members that are down load it when they start."""
    while not await backend.all_have(model.model_hash):
        await asyncio.sleep(LOOK_S)
    service.use(model)
    LOG.info("model version %s is served", model.model_hash)


def checked_model(folder: str, members: int) -> ServedModel:
    """The facts of a folder with at least that many members.

    Raises:
        ModelFolderError, ConfigError: not a model, or too few members for this service.
    """
    model = read_model(Path(folder))
    if model.members < members:
        raise ConfigError(
            "the model has too few members",
            expected=f"at least {members}",
            found=str(model.members),
            todo="make more with `clinfuse ensemble`",
        )
    return model

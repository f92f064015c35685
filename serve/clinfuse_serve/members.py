"""Members and aggregator as Ray Serve deployments, and the graph that `clinfuse serve` and a config file deploy."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from clinfuse.case import Case
from clinfuse_serve.backend import Order, run_in_turn
from clinfuse_serve.drawing import Ask, draw_together, fits_batch
from clinfuse_serve.kept import KeptCase
from clinfuse_serve.kept_features import KeptFeatures
from clinfuse_serve.limits import Limits
from clinfuse_serve.parts import SLAB
from clinfuse_serve.preset_table import PresetTable
from clinfuse_serve.ray_backend import AGGREGATOR, RayBackend, aggregators, ask_all, member_name
from clinfuse_serve.versions import LoadedVersions, change_over, checked_model, refused, wanted_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clinfuse.combine import MemberSample


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the replicas of one service need to know; plain data.

    Attributes:
        app: name of the Serve application.
        members: how many members.
        threads: torch threads per member.
        limits: bounds of each aggregator replica.
        secret: key of case tokens.
        digest: SHA-256 of the token, or None.
        loopback_only: refuse other hosts' names.
        examples: prepared store with example cases, or None for simulated ones.
        study: study file, or None.
        device: where members run.
        precision: of their networks, as in `FusionPipeline`.
        batch: most slices of different requests that a member draws in one batch.
    """

    app: str
    members: int
    threads: int
    limits: Limits
    secret: bytes
    digest: str | None
    loopback_only: bool
    examples: str | None = None
    study: str | None = None
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 1


class Member:
    """One ensemble member; also remembers changed presets for aggregators that start later."""

    def __init__(self, settings: Settings, member: int) -> None:
        from clinfuse.lean import use_lean_imports

        use_lean_imports()
        import torch

        torch.set_num_threads(settings.threads)
        self.app, self.member = settings.app, member
        self._versions = LoadedVersions(settings.device, settings.precision)
        self._refusal = ""
        self._presets = PresetTable({}, origin="")
        self._turn = asyncio.Lock()
        self._kept = KeptFeatures(settings.limits.features_bytes, settings.limits.kept_s)
        self._draw_together.set_max_batch_size(settings.batch)  # type: ignore[attr-defined]

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load the wanted model version beside those in use; one that cannot be is refused if another is here."""
        self._refusal = ""
        try:
            await asyncio.to_thread(self._versions.load, wanted_folder(user_config))
        except Exception as error:
            if not self._versions.hashes():
                raise
            self._refusal = refused(error)
        if self._versions.crowded and (told := await ask_all(aggregators(self.app), "versions_in_use")):
            self._versions.forget(set().union(*told))

    async def refusal(self) -> str:
        """Why the wanted version was refused; "" if it was not."""
        return self._refusal

    async def draw(self, case: Case, order: Order) -> list[MemberSample]:
        """This member's samples; orders take turns, slices of like shape share one."""
        pipeline, part = self._versions.get(order.model), order.part_of(case)
        if fits_batch(pipeline, part, order):
            return list(await self._draw_together(Ask(pipeline, part, order)))
        return await run_in_turn(self._turn, pipeline, case, self.member, order, self._kept)

    @serve.batch(max_batch_size=SLAB, batch_wait_timeout_s=0.0)
    async def _draw_together(self, asks: list[Ask]) -> list[list[MemberSample]]:
        async with self._turn:
            return await asyncio.to_thread(draw_together, asks, self.member, self._kept)

    async def versions(self) -> list[str]:
        """Hashes of the model versions loaded here."""
        return self._versions.hashes()

    async def remember_presets(self, changes: Mapping[str, Any]) -> None:
        """Keep changed presets, unless newer ones are known."""
        self._presets.merge(changes)

    async def known_presets(self) -> dict[str, Any]:
        """Changed presets heard of."""
        return self._presets.changes()


@serve.ingress()
class Aggregator:
    """The HTTP front: parses, prepares, asks the members, combines, answers."""

    def __init__(self, settings: Settings, *members: DeploymentHandle) -> None:
        from clinfuse_serve.examples import open_examples
        from clinfuse_serve.observe import RayMetrics, log_to_stderr
        from clinfuse_serve.service import FusionService

        log_to_stderr()
        self._private = tempfile.TemporaryDirectory(prefix="clinfuse-serve-")
        tempfile.tempdir = self._private.name
        self.settings = settings
        self.backend = RayBackend(settings.app, members)
        self._changing: asyncio.Task[None] | None = None
        self._awaited = self._refusal = ""
        self.service = FusionService(
            None,
            self.backend,
            settings.limits,
            secret=settings.secret,
            examples=open_examples(settings.examples),
            replica=f"{os.getpid()}-{time.time_ns()}",
            sink=RayMetrics(),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        from clinfuse_serve.application import build_application
        from clinfuse_serve.study import read_study

        settings = self.settings
        return build_application(
            self.service,
            digest=settings.digest,
            loopback_only=settings.loopback_only,
            study=read_study(settings.study) if settings.study else None,
        )

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take the first model version; change over to a later one as soon as every member has it. Returns at once."""
        self._refusal = ""
        try:
            model = checked_model(wanted_folder(user_config), self.settings.members)
        except Exception as error:
            if not self.service.ready:
                raise
            self._refusal = refused(error)
            return
        if self._changing is not None:
            self._changing.cancel()
        self._awaited = model.model_hash
        if not self.service.ready:
            self.service.use(model)
        elif model.model_hash != self.service.model.model_hash:
            self._changing = asyncio.create_task(change_over(self.service, self.backend, model))

    async def refusal(self) -> str:
        """Why the wanted version was refused; "" if it was not."""
        return self._refusal

    async def versions_in_use(self) -> set[str]:
        """Hashes of the versions that members are asked for from here, or may be."""
        return self.service.versions_in_use() | {self._awaited}

    async def merge_presets(self, changes: Mapping[str, Any]) -> None:
        """Hear of presets changed on another replica."""
        self.service.presets.merge(changes)

    async def kept_case(self, token: str) -> KeptCase | None:
        """A case that is kept here, for another replica to keep too."""
        kept = self.service.cases.kept.get(token)
        return None if kept is None else replace(kept, held=None)

    async def metrics_snapshot(self) -> dict[str, Any]:
        """This replica's numbers."""
        return self.service.snapshot()


def build(settings: Settings, replicas: int, groups: int = 1) -> serve.Application:
    """The application graph: K members under the aggregator's replicas.

    Args:
        settings: of all replicas.
        replicas: of the HTTP front.
        groups: most replicas of each member; above 1, Serve adds them while requests queue.
    """
    calm: dict[str, Any] = {
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 5,
    }
    size: dict[str, Any] = {"num_replicas": 1}
    if groups > 1:
        size = {
            "autoscaling_config": {"min_replicas": 1, "max_replicas": groups, "target_ongoing_requests": 2}
        }
    member: serve.Deployment = serve.deployment(
        max_ongoing_requests=max(8, 2 * settings.batch),
        ray_actor_options=_resources(settings.device),
        **size,
        **calm,
    )(Member)
    aggregator: serve.Deployment = serve.deployment(
        name=AGGREGATOR,
        num_replicas=replicas,
        max_ongoing_requests=4 * settings.limits.queue + 16,
        ray_actor_options={"num_cpus": 0.05},
        **calm,
    )(Aggregator)
    members = [member.options(name=member_name(k)).bind(settings, k) for k in range(settings.members)]
    return aggregator.bind(settings, *members)


def _resources(device: str) -> dict[str, float]:
    return {"num_cpus": 0.1, "num_gpus": 0.1} if device.startswith("cuda") else {"num_cpus": 0.1}

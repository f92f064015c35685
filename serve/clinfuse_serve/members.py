"""Members and aggregator as Ray Serve deployments.

One named deployment per ensemble member, because one handle call reaches one replica; the aggregator asks all of
them at once and answers with those that replied. A member that dies is reported missing at once instead of being
waited for, and Serve starts it again.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from clinfuse.case import Case
from clinfuse_serve.backend import Gathered, Order, gather, run_in_turn
from clinfuse_serve.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clinfuse.combine import MemberSample

AGGREGATOR = "Aggregator"
LOOK_S = 0.5
CONTROL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the replicas of one service need to know; plain data.

    Attributes:
        app: name of the Serve application.
        model: model folder.
        members: how many members.
        threads: torch threads per member.
        limits: bounds of each aggregator replica.
        secret: key of case tokens.
        digest: SHA-256 of the token, or None.
        loopback_only: refuse other hosts' names.
        examples: prepared store with example cases, or None.
        device: where members run.
    """

    app: str
    model: str
    members: int
    threads: int
    limits: Limits
    secret: bytes
    digest: str | None
    loopback_only: bool
    examples: str | None = None
    device: str = "cpu"


def member_name(member: int) -> str:
    """Name of a member's deployment."""
    return f"Member{member}"


class Member:
    """One ensemble member; also remembers changed presets for aggregators that start later."""

    def __init__(self, settings: Settings, member: int) -> None:
        from clinfuse.lean import use_lean_imports

        use_lean_imports()
        import torch

        from clinfuse.pipeline import FusionPipeline

        torch.set_num_threads(settings.threads)
        self.member = member
        self.pipeline = FusionPipeline.from_pretrained(settings.model, device=settings.device)
        self._changes: dict[str, Any] = {}
        self._turn = asyncio.Lock()

    async def draw(self, case: Case, order: Order) -> list[MemberSample]:
        """This member's samples, one request at a time; the event loop stays free for health checks."""
        return await run_in_turn(self._turn, self.pipeline, case, self.member, order)

    def remember_presets(self, changes: Mapping[str, Any]) -> None:
        """Keep changed presets."""
        self._changes.update(changes)

    def known_presets(self) -> dict[str, Any]:
        """Changed presets heard of."""
        return self._changes


class RayBackend:
    """Members as deployments of the same application."""

    def __init__(self, app: str, handles: Sequence[DeploymentHandle]) -> None:
        self.app, self.handles, self.members = app, list(handles), len(handles)
        self._seen: tuple[float, list[bool]] = (-1e9, [True] * len(handles))

    async def hold(self, case: Case) -> Any:
        """Put the case into the object store once; members read it there."""
        return await asyncio.to_thread(ray.put, case)

    async def sample(self, held: Any, order: Order, members: Sequence[int], deadline_s: float) -> Gathered:
        """Ask all members at once; those that are down are not waited for."""
        calls = {member: self._ask(held, order, member) for member in members}
        return await gather(calls, deadline_s)

    async def _ask(self, held: Any, order: Order, member: int) -> list[MemberSample]:
        response = self.handles[member].draw.remote(held, order)
        task = asyncio.ensure_future(_result(response))
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                if not (await self.up())[member]:
                    raise MemberDownError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                response.cancel()

    async def up(self) -> list[bool]:
        """Which members have a running replica, by Serve's own account at most half a second old."""
        checked, state = self._seen
        if time.monotonic() - checked > LOOK_S:
            state = await asyncio.to_thread(self._look)
            self._seen = (time.monotonic(), state)
        return state

    def _look(self) -> list[bool]:
        application = serve.status().applications.get(self.app)
        deployments = application.deployments if application else {}
        rows = [deployments.get(member_name(member)) for member in range(self.members)]
        return [bool(row and row.replica_states.get(ReplicaState.RUNNING)) for row in rows]

    async def tell_presets(self, changes: Mapping[str, Any]) -> None:
        """Broadcast to every aggregator replica and every member."""
        calls = [self._broadcast(handle, "remember_presets", dict(changes)) for handle in self.handles]
        await asyncio.gather(self._broadcast(self._peers(), "merge_presets", dict(changes)), *calls)

    async def learn_presets(self) -> Mapping[str, Any]:
        """What the members remember, newest stamps win."""
        told = await asyncio.gather(*(self._broadcast(h, "known_presets") for h in self.handles))
        rows: dict[str, Any] = {}
        for changes in (change for answers in told for change in answers):
            for name, row in changes.items():
                if name not in rows or row["stamp"] > rows[name]["stamp"]:
                    rows[name] = row
        return rows

    async def snapshots(self, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Ask every aggregator replica; this one's own numbers if none answers."""
        return await self._broadcast(self._peers(), "metrics_snapshot") or [own]

    def _peers(self) -> DeploymentHandle:
        return serve.get_deployment_handle(AGGREGATOR, self.app)

    async def _broadcast(self, handle: DeploymentHandle, method: str, *arguments: Any) -> list[Any]:
        """Answers of all replicas that gave one in time; control calls only."""
        try:
            response = handle.broadcast(method, *arguments)
            return list(await asyncio.wait_for(response.results_async(return_exceptions=True), CONTROL_S))
        except (TimeoutError, ray.exceptions.RayError, RuntimeError):
            return []


class MemberDownError(RuntimeError):
    """A member has no running replica."""


async def _result(response: Any) -> list[MemberSample]:
    return list(await response)


@serve.ingress()
class Aggregator:
    """The HTTP front: parses, prepares, asks the members, combines, answers."""

    def __init__(self, settings: Settings, *members: DeploymentHandle) -> None:
        from clinfuse_serve.examples import open_examples
        from clinfuse_serve.served_model import read_model
        from clinfuse_serve.service import FusionService

        self._private = tempfile.TemporaryDirectory(prefix="clinfuse-serve-")
        tempfile.tempdir = self._private.name
        self.settings = settings
        self.service = FusionService(
            read_model(settings.model),
            RayBackend(settings.app, members),
            settings.limits,
            secret=settings.secret,
            examples=open_examples(settings.examples),
            replica=f"{os.getpid()}-{time.time_ns()}",
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        from clinfuse_serve.application import build_application

        settings = self.settings
        return build_application(self.service, digest=settings.digest, loopback_only=settings.loopback_only)

    async def merge_presets(self, changes: Mapping[str, Any]) -> None:
        """Hear of presets changed on another replica."""
        self.service.presets.merge(changes)

    async def metrics_snapshot(self) -> dict[str, Any]:
        """This replica's numbers."""
        return self.service.snapshot()


def build(settings: Settings, aggregators: int) -> serve.Application:
    """The application graph: K members under the aggregator's replicas."""
    calm: dict[str, Any] = {
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 5,
    }
    member: serve.Deployment = serve.deployment(
        num_replicas=1, max_ongoing_requests=8, ray_actor_options=_resources(settings.device), **calm
    )(Member)
    aggregator: serve.Deployment = serve.deployment(
        name=AGGREGATOR,
        num_replicas=aggregators,
        max_ongoing_requests=4 * settings.limits.queue + 16,
        ray_actor_options={"num_cpus": 0.05},
        **calm,
    )(Aggregator)
    members = [member.options(name=member_name(k)).bind(settings, k) for k in range(settings.members)]
    return aggregator.bind(settings, *members)


def _resources(device: str) -> dict[str, float]:
    return {"num_cpus": 0.1, "num_gpus": 0.1} if device.startswith("cuda") else {"num_cpus": 0.1}

"""Members as deployments of the same Serve application, seen from an aggregator.

One named deployment per ensemble member, because one handle call reaches one replica; all are asked at once and those
that replied count. A member that dies is reported missing at once instead of being waited for; Serve restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from clinfuse.case import Case
from clinfuse_serve.backend import Gathered, Order, gather
from clinfuse_serve.parts import Tell, draw_in_turn

if TYPE_CHECKING:
    from clinfuse.combine import MemberSample
    from clinfuse_serve.kept import KeptCase

AGGREGATOR = "Aggregator"
LOOK_S = 0.5
CONTROL_S = 5.0
LOG = logging.getLogger("clinfuse.serve")


def member_name(member: int) -> str:
    """Name of a member's deployment."""
    return f"Member{member}"


class MemberDownError(RuntimeError):
    """A member has no running replica."""


class RayBackend:
    """Asks members by their handles; control calls go to every replica by broadcast."""

    def __init__(self, app: str, handles: Sequence[DeploymentHandle]) -> None:
        self.app, self.handles, self.members = app, list(handles), len(handles)
        self._seen: tuple[float, list[bool]] = (-1e9, [True] * len(handles))

    async def hold(self, case: Case) -> Any:
        """Put the case into the object store once; members read it there."""
        return await asyncio.to_thread(ray.put, case)

    async def find_case(self, token: str) -> KeptCase | None:
        """Ask the other aggregators: they share the requests of one page."""
        told = await ask_all(aggregators(self.app), "kept_case", token)
        return next((kept for kept in told if kept is not None), None)

    async def sample(
        self, held: Any, orders: Sequence[Order], members: Sequence[int], deadline_s: float, tell: Tell
    ) -> Gathered:
        """Ask all members at once; those that are down are not waited for."""
        calls = {m: draw_in_turn(partial(self._ask, held, m), orders, tell) for m in members}
        return await gather(calls, deadline_s)

    async def _ask(self, held: Any, member: int, order: Order) -> list[MemberSample]:
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
        serving = (ReplicaState.RUNNING, ReplicaState.UPDATING)
        return [bool(row and any(row.replica_states.get(state) for state in serving)) for row in rows]

    async def all_have(self, model_hash: str) -> bool:
        """Whether every replica of every member that answers has loaded that model version."""
        told = await asyncio.gather(*(ask_all(handle, "versions") for handle in self.handles))
        return all(told) and all(model_hash in hashes for answers in told for hashes in answers)

    async def tell_presets(self, changes: Mapping[str, Any]) -> None:
        """Broadcast to every aggregator replica and every member."""
        calls = [ask_all(handle, "remember_presets", dict(changes)) for handle in self.handles]
        await asyncio.gather(ask_all(aggregators(self.app), "merge_presets", dict(changes)), *calls)

    async def learn_presets(self) -> list[Mapping[str, Any]]:
        """What the members remember."""
        told = await asyncio.gather(*(ask_all(h, "known_presets") for h in self.handles))
        return [changes for answers in told for changes in answers]

    async def snapshots(self, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Ask every aggregator replica; this one's own numbers if none answers."""
        return await ask_all(aggregators(self.app), "metrics_snapshot") or [own]


def aggregators(app: str) -> DeploymentHandle:
    """All aggregator replicas of an application, for `ask_all`."""
    return serve.get_deployment_handle(AGGREGATOR, app)


async def ask_all(deployment: DeploymentHandle, method: str, *arguments: Any) -> list[Any]:
    """Answers of all replicas that gave one in time; control calls only."""
    try:
        response = deployment.broadcast(method, *arguments)
        told = await asyncio.wait_for(response.results_async(return_exceptions=True), CONTROL_S)
        return [answer for answer in told if not isinstance(answer, BaseException)]
    except (TimeoutError, ray.exceptions.RayError, RayServeException, RuntimeError) as error:
        LOG.warning("control call %s got no answer: %s %s", method, type(error).__name__, error)
        return []


async def _result(response: Any) -> list[MemberSample]:
    return list(await response)

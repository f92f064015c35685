"""Where members run: the promises every backend keeps, and the one that runs them in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from clinfuse.case import Case
from clinfuse.presets import Preset
from clinfuse_serve.kept_features import KeptFeatures
from clinfuse_serve.limits import Limits
from clinfuse_serve.parts import Tell, draw_in_turn

if TYPE_CHECKING:
    from clinfuse.combine import MemberSample
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_serve.kept import KeptCase


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every asked member is to draw: plain data, the same for all members.

    Attributes:
        preset: weights and strengths.
        steps: sampler steps, None for the model's own.
        seed: of the whole request; members, samples and jitters derive their own from it.
        draws: (sample, jitter) pairs.
        guided: gradient guidance on, off, or as the model's kind has it (None).
        slab: only the axial slices [start, stop), None for all.
        model: hash of the model version that is meant; "" for whichever is there.
        case: token of the case, under which a member keeps what it saw of it; "" keeps nothing.
    """

    preset: Preset
    steps: int | None = None
    seed: int = 0
    draws: tuple[tuple[int, int], ...] = ((0, 0),)
    guided: bool | None = None
    slab: tuple[int, int] | None = None
    model: str = ""
    case: str = ""

    def part_of(self, case: Case) -> Case:
        """What of the case is asked: the slab or all of it."""
        return case if self.slab is None else case.slices(*self.slab)


@dataclass
class Gathered:
    """Answers of the members: all samples, and why members are missing."""

    samples: list[MemberSample] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)


class Backend(Protocol):
    """Runs members. Promises: `sample` never raises for a member's failure, it reports it in `missing`;
    answers come in member order, whatever order they arrived in; cancelling the call cancels the members' work.
    """

    members: int

    async def hold(self, case: Case) -> Any:
        """A reference to the case that `sample` takes; cheap to use often."""

    async def find_case(self, token: str) -> KeptCase | None:
        """A case that another replica keeps."""

    async def sample(
        self, held: Any, orders: Sequence[Order], members: Sequence[int], deadline_s: float, tell: Tell
    ) -> Gathered:
        """Ask members, all at once; each draws the orders in turn (one, or the slabs of a volume) and their samples
        come joined. `tell` is called after every draw of every member."""

    async def up(self) -> list[bool]:
        """Which members are up."""

    async def tell_presets(self, changes: Mapping[str, Any]) -> None:
        """Tell every other replica of changed presets."""

    async def learn_presets(self) -> list[Mapping[str, Any]]:
        """Changed presets that other replicas know of, one mapping a replica; empty if none of them answered."""

    async def snapshots(self, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Metric snapshots of all aggregator replicas, this one's included."""


def run_order(
    pipeline: FusionPipeline,
    case: Case,
    member: int,
    order: Order,
    stop: threading.Event | None = None,
    kept: KeptFeatures | None = None,
) -> list[MemberSample]:
    """All draws of one member, one after another, from what it saw before if that is kept; none is begun once `stop`
    is set."""
    part, samples = order.part_of(case), []
    seen = (kept or KeptFeatures(0, 0)).features(pipeline, part, member, order, case.shape[0])
    for sample, jitter in order.draws:
        if stop is not None and stop.is_set():
            break
        samples.append(
            pipeline.sample_member(
                part,
                member,
                order.preset,
                steps=order.steps,
                seed=order.seed,
                sample_index=sample,
                jitter_index=jitter,
                guided=order.guided,
                features=None if jitter else seen,
            )
        )
    return samples


async def run_in_turn(
    turn: asyncio.Lock, pipeline: FusionPipeline, case: Case, member: int, order: Order, kept: KeptFeatures
) -> list[MemberSample]:
    """`run_order` in a thread when it is its turn; a cancelled request keeps its turn until its draw has ended."""
    stop = threading.Event()
    async with turn:
        work = asyncio.ensure_future(asyncio.to_thread(run_order, pipeline, case, member, order, stop, kept))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            raise


async def gather(calls: Mapping[int, Awaitable[list[MemberSample]]], deadline_s: float) -> Gathered:
    """Wait for members up to a deadline; failures and latecomers become `missing`."""
    tasks = {member: asyncio.ensure_future(call) for member, call in calls.items()}
    try:
        await asyncio.wait(tasks.values(), timeout=deadline_s)
    finally:
        for task in tasks.values():
            task.cancel()
    gathered = Gathered()
    for member, task in sorted(tasks.items()):
        if not task.done() or task.cancelled():
            gathered.missing[member] = "no answer before the deadline"
        elif (error := task.exception()) is not None:
            gathered.missing[member] = f"failed: {type(error).__name__}"
        else:
            gathered.samples += task.result()
    return gathered


class LocalBackend:
    """Members in this process, one after another in a thread: no Ray, no failover."""

    def __init__(self, pipeline: FusionPipeline, limits: Limits | None = None) -> None:
        self.pipeline, self.members = pipeline, len(pipeline.members)
        limits = limits or Limits()
        self.kept = KeptFeatures(limits.features_bytes, limits.kept_s)
        self._turn = asyncio.Lock()

    async def hold(self, case: Case) -> Case:
        """The case itself."""
        return case

    async def find_case(self, token: str) -> KeptCase | None:
        """Nobody else to ask."""
        return None

    async def sample(
        self, held: Case, orders: Sequence[Order], members: Sequence[int], deadline_s: float, tell: Tell
    ) -> Gathered:
        """Run the members in turn."""

        async def draw(member: int, order: Order) -> list[MemberSample]:
            return await run_in_turn(self._turn, self.pipeline, held, member, order, self.kept)

        return await gather({m: draw_in_turn(partial(draw, m), orders, tell) for m in members}, deadline_s)

    async def up(self) -> list[bool]:
        """Always all."""
        return [True] * self.members

    async def tell_presets(self, changes: Mapping[str, Any]) -> None:
        """Nobody else to tell."""

    async def learn_presets(self) -> list[Mapping[str, Any]]:
        """Nobody else was told of any."""
        return [{}]

    async def snapshots(self, own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Only this process."""
        return [own]

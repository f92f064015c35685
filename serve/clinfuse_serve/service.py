"""One fuse request from images to files: prepare, ask members, combine, encode; independent of HTTP and of Ray."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from clinfuse import RESEARCH_USE, __version__
from clinfuse.case import Case
from clinfuse.outputs import case_grid, encode_fused, jsonable
from clinfuse.presets import Preset
from clinfuse_serve.answer import Answer, Count, Progress, silent
from clinfuse_serve.backend import Backend
from clinfuse_serve.cases import Cases
from clinfuse_serve.deadline import Deadline
from clinfuse_serve.examples import Examples, SimulatedExamples
from clinfuse_serve.kept import KeptCase
from clinfuse_serve.limits import Limits
from clinfuse_serve.metrics import Metrics, Sink, merge
from clinfuse_serve.middleware import Gate
from clinfuse_serve.observe import note_drift
from clinfuse_serve.ordering import order_of, parts_of
from clinfuse_serve.preset_table import PresetTable
from clinfuse_serve.problems import ProblemError, no_members
from clinfuse_serve.schemas import (
    ExampleRow,
    FuseParams,
    Health,
    ModelRow,
    PresetRow,
)
from clinfuse_serve.served_model import ServedModel
from clinfuse_serve.slot import Slot

T = TypeVar("T")


class FusionService:
    """The aggregator's work; one object per replica.

    Args:
        model: identity, presets and calibration, or None until `use`; members run in the backend.
        backend: where members run.
        limits: bounds of this replica.
        secret: key of case tokens, equal on all replicas of one service.
        examples: cases offered for trying out.
        replica: name of this replica, for stamps of changed presets.
        sink: hears of every metric too.
    """

    def __init__(
        self,
        model: ServedModel | None,
        backend: Backend,
        limits: Limits,
        *,
        secret: bytes,
        examples: Examples | None = None,
        replica: str = "0",
        sink: Sink | None = None,
    ) -> None:
        self._model, self.backend, self.limits = model, backend, limits
        self.examples = examples or SimulatedExamples()
        self.presets = PresetTable(model.presets if model else {}, replica)
        self.metrics = Metrics(sink)
        self.cases = Cases(backend, limits, secret, self.examples, self.metrics)
        self.gate = Gate(limits, self.metrics)
        self.at_once = asyncio.Semaphore(limits.at_once)
        self._under_way: Counter[str] = Counter()
        self._learned = False

    def use(self, model: ServedModel) -> None:
        """Serve another model version from now on; requests under way finish with theirs."""
        self._model = model
        self.presets.rebase(model.presets)

    @property
    def ready(self) -> bool:
        """Whether there is a model to serve."""
        return self._model is not None

    @property
    def model(self) -> ServedModel:
        """The version that is served; ProblemError 503 before there is one."""
        if self._model is None:
            raise ProblemError(no_members(self.backend.members, {}))
        return self._model

    def versions_in_use(self) -> set[str]:
        """Hashes of the version that is served and of those by which requests under way are answered."""
        return {self.model.model_hash, *(+self._under_way)}

    @contextmanager
    def _using(self, model: ServedModel) -> Iterator[None]:
        self._under_way[model.model_hash] += 1
        try:
            yield
        finally:
            self._under_way[model.model_hash] -= 1

    async def fuse(self, params: FuseParams, files: Mapping[str, Path], tell: Progress = silent) -> Answer:
        """Fuse one pair.

        Args:
            params: checked parameters.
            files: role → file; empty if `params.case` or `params.example` names a case.
            tell: called with (draws done, draws in all), first with 0 done.

        Raises:
            InputError: the pair, the preset or the parameters cannot be used (422).
            ProblemError: case gone (410), too much asked (422), no member answered, or the deadline came before they
                were asked (503).
        """
        with self._gone():
            return await self._fuse(params, partial(self.cases.case_of, params, files), tell)

    async def fuse_case(self, params: FuseParams, token: str, make: Callable[[], Case]) -> Answer:
        """Fuse a case of the service's own; raises as `fuse`."""
        with self._gone():
            return await self._fuse(
                params, partial(self.cases.keep, token, lambda: KeptCase(token, make())), silent
            )

    async def _fuse(
        self, params: FuseParams, case: Callable[[], Awaitable[KeptCase]], tell: Progress
    ) -> Answer:
        model = self.model
        with self._using(model):
            return await self._fuse_by(model, params, case, tell)

    async def _fuse_by(
        self,
        model: ServedModel,
        params: FuseParams,
        case: Callable[[], Awaitable[KeptCase]],
        tell: Progress,
    ) -> Answer:
        seconds: dict[str, float] = {}
        deadline = Deadline(params.deadline_s, self.limits.deadline_s)
        await self.learn()
        order, members = order_of(params, self.presets, model, self.limits, self.backend.members)
        async with self._place(deadline, members, seconds) as (slot, asked):
            with self.metrics.phase("prepare", seconds):
                kept = await slot.whole(case())
                order = replace(order, case=kept.token)
                part = order.part_of(kept.case)
            orders = parts_of(model, order, kept.case.shape[0])
            done = Count(len(orders) * len(members), tell)
            asked()
            with self.metrics.phase("sample", seconds):
                left = deadline.left_s()
                gathered = await self.backend.sample(kept.held, orders, members, left, done.one_more)
            for member in gathered.missing:
                self.metrics.count("clinfuse_member_failures_total", member=str(member))
            if not gathered.samples:
                raise ProblemError(no_members(len(members), gathered.missing))
            with self.metrics.phase("combine", seconds):
                result = await asyncio.to_thread(
                    model.combine,
                    gathered.samples,
                    part,
                    order.preset,
                    asked=len(members),
                    seed=order.seed,
                )
        used = len({sample.member for sample in gathered.samples})
        answer = Answer(kept, part, result, len(members), used, gathered.missing, seconds)
        self._note(answer, time.monotonic() - deadline.start)
        return answer

    async def made(self, work: Callable[[], T]) -> T:
        """What a thread makes without members, in a place and under the deadline, as a fused image.

        Raises:
            ProblemError: 503, the deadline came before.
        """
        with self._gone():
            async with self._place(Deadline(None, self.limits.deadline_s), (), {}) as (slot, _):
                return await slot.whole(asyncio.to_thread(work))

    @asynccontextmanager
    async def _place(
        self, deadline: Deadline, members: Sequence[int], seconds: dict[str, float]
    ) -> AsyncIterator[tuple[Slot, Callable[[], None]]]:
        """A place among the requests at work, and what says that the members are asked, see `Deadline`."""
        async with deadline.until_asked(members, seconds) as asked, Slot(self.at_once) as slot:
            with self.metrics.phase("queue", seconds, deadline.start):
                pass
            yield slot, asked

    async def encode(self, answer: Answer, params: FuseParams) -> dict[str, tuple[str, bytes]]:
        """The answer's files in the geometry of the anatomy image; PNG if a slice came in as PNG, DICOM if asked."""
        from clinfuse_prep.geometry import to_source_grid

        with self._gone(), self.metrics.phase("encode", answer.seconds):
            kind: Any = answer.kept.kind if params.format == "auto" else params.format
            return await asyncio.to_thread(
                encode_fused,
                answer.result,
                answer.part,
                to_source_grid if params.slab is None and params.grid == "anatomy" else case_grid,
                image_format=kind,
                inputs=params.inputs,
                compress=params.compress,
            )

    async def change_preset(self, preset: Preset) -> Preset:
        """Set a preset here and on every other replica.

        Raises:
            ConfigError: an impossible name, or too many presets. ProblemError: 503 while nobody tells which changes
            were made before: this one might then count as older than they.
        """
        await self.learn()
        if not self._learned:
            raise ProblemError(no_members(self.backend.members, {}))
        await self.backend.tell_presets(self.presets.change(preset))
        return preset

    async def learn(self) -> None:
        """After the start, until somebody answers: take over what other replicas know of changed presets."""
        if not self._learned:
            told = await self.backend.learn_presets()
            for changes in told:
                self.presets.merge(changes)
            self._learned = bool(told)

    async def preset_rows(self) -> list[PresetRow]:
        """All presets with their values."""
        await self.learn()
        return [PresetRow(**preset.as_dict()) for preset in self.presets.presets().values()]

    async def health(self) -> Health:
        """Members up and missing."""
        up = await self.backend.up()
        missing = [member for member, alive in enumerate(up) if not alive]
        return Health(
            status="ok" if not missing else "degraded" if any(up) else "down",
            members=len(up),
            members_up=sum(up),
            missing=missing,
            version=__version__,
            research_use=RESEARCH_USE,
        )

    async def model_row(self) -> ModelRow:
        """The model that is served."""
        up = await self.backend.up()
        return ModelRow(
            name=self.model.name,
            kind=self.model.kind,
            model_hash=self.model.model_hash,
            members=len(up),
            members_up=sum(up),
            calibrated=self.model.calibration is not None,
            metadata=jsonable(self.model.metadata),
        )

    async def example_rows(self) -> list[ExampleRow]:
        """Cases offered for trying out."""
        return await asyncio.to_thread(self.examples.rows)

    def snapshot(self) -> dict[str, Any]:
        """This replica's numbers."""
        self.metrics.set("clinfuse_in_flight", self.gate.waiting)
        self.metrics.set("clinfuse_kept_cases", len(self.cases.kept))
        self.metrics.set("clinfuse_kept_bytes", self.cases.kept.bytes)
        return self.metrics.snapshot()

    async def all_metrics(self) -> dict[str, Any]:
        """Numbers of all aggregator replicas together; the members as they are now."""
        up = await self.backend.up()
        members = {"clinfuse_members": len(up), "clinfuse_members_up": sum(up)}
        for name, value in members.items():
            self.metrics.set(name, value)
        return merge(await self.backend.snapshots(self.snapshot()), members)

    @contextmanager
    def _gone(self) -> Iterator[None]:
        """Counts a request that is cancelled: its client has closed the connection."""
        try:
            yield
        except asyncio.CancelledError:
            self.metrics.count("clinfuse_cancelled_total")
            raise

    def _note(self, answer: Answer, seconds: float) -> None:
        case, result = answer.part, answer.result
        self.metrics.observe("clinfuse_seconds", seconds, phase="fuse")
        self.metrics.count("clinfuse_voxels_total", float(case.anatomy.size))
        if answer.degraded:
            self.metrics.count("clinfuse_degraded_replies_total")
        note_drift(self.metrics, case, result, self.model.metadata.get("intensity", {}))

"""HTTP of the reader study: next item, its pictures, its rating, the summary."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from clinfuse import RESEARCH_USE
from clinfuse.case import Case
from clinfuse.outputs import case_grid, nifti_bytes, spacing_assumed
from clinfuse_serve.examples import Examples, StoreExamples
from clinfuse_serve.problems import Problem, ProblemError, not_whole
from clinfuse_serve.replies import PROBLEMS
from clinfuse_serve.schemas import FuseParams
from clinfuse_serve.streaming import unless_gone
from clinfuse_serve.study import Answers, Item, Study, order_of

if TYPE_CHECKING:
    from clinfuse_serve.service import FusionService

Picture = Literal["anatomy", "companion", "fused"]
Reader = Annotated[str, Path(max_length=32, description="pseudonym of the reader: letters a-z and digits")]
SEED = 0


class StudyRow(BaseModel):
    """What readers are told of the study."""

    title: str
    questions: list[str]
    scale: int
    items: int
    research_use: str


class NextItem(BaseModel):
    """Where a reader is, and what the pair is that comes next; `item` and `modalities` are None when all is rated."""

    item: int | None
    done: int
    items: int
    simulated: bool = False
    modalities: tuple[str, str] | None = Field(None, description="of anatomy and companion image")
    spacing_assumed: bool = Field(False, description="the images came as pictures, which carry no spacing")


class Rating(BaseModel):
    """One answer; no free text, so that no name can get in."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    ratings: list[int] = Field(max_length=12)
    seconds: float = Field(ge=0, le=86_400)


class Reading:
    """The study on one replica."""

    def __init__(self, study: Study, service: FusionService) -> None:
        self.study, self.service, self.answers = study, service, Answers(study)
        self.cases: Examples = StoreExamples(study.cases) if study.cases else service.examples
        self._ids: list[str] = []

    def case_ids(self) -> list[str]:
        """Pseudonyms of all cases."""
        if not self._ids:
            self._ids = self.cases.names()
        return self._ids

    def item(self, reader: str, position: int) -> Item:
        """The item at a place of a reader's order; ProblemError 404 if there is none."""
        items = order_of(self.study, self.case_ids(), reader)
        if not 0 <= position < len(items):
            raise ProblemError(Problem(status=404, title="no such item", expected=f"0 to {len(items) - 1}"))
        return items[position]

    def next(self, reader: str) -> NextItem:
        """The first item in order that is not rated."""
        items, done = order_of(self.study, self.case_ids(), reader), self.answers.done(reader)
        place: dict[str, Any] = {"done": len(done), "items": len(items)}
        item = next((item for item in items if item.position not in done), None)
        if item is None:
            return NextItem(item=None, **place)
        case = self.cases.case(item.case_id)
        return NextItem(
            item=item.position,
            simulated=bool(case.attrs.get("simulated")),
            modalities=case.modalities,
            spacing_assumed=spacing_assumed(case),
            **place,
        )

    async def picture(self, reader: str, position: int, picture: Picture) -> bytes:
        """One volume on the RAS+ grid, windowed to [0, 1]; nothing in it tells the arm."""
        item = await asyncio.to_thread(self.item, reader, position)
        if picture == "fused":
            volume, case = await self._fused(item, reader)
        else:
            case = await asyncio.to_thread(self.cases.case, item.case_id)
            volume = getattr(case, picture)
        array, affine = case_grid(np.asarray(volume, np.float32), case)
        return await asyncio.to_thread(nifti_bytes, array, affine)

    async def _fused(self, item: Item, reader: str) -> tuple[Any, Case]:
        """The picture to rate (D, H, W), whole or not at all, and its case; notes by which model version it was made.

        Raises:
            ProblemError: 503 if a member is missing, as its picture would be rated as the arm's, or the deadline came.
        """
        volume, case, model_hash = await (self._method(item) if item.arm.method else self._model(item))
        await asyncio.to_thread(self.answers.note_drawn, item, reader, model_hash)
        return volume, case

    async def _method(self, item: Item) -> tuple[Any, Case, str]:
        from clinfuse.baselines import BASELINES

        method, preset = BASELINES[str(item.arm.method)], self.service.presets.find(item.arm.preset)

        def work() -> tuple[Any, Case, str]:
            case = self.cases.case(item.case_id)
            return method(case, preset), case, ""

        return await self.service.made(work)

    async def _model(self, item: Item) -> tuple[Any, Case, str]:
        params = FuseParams.model_validate({"preset": item.arm.preset, "seed": SEED})
        make = partial(self.cases.case, item.case_id)
        answer = await self.service.fuse_case(params, f"study{item.case_id}", make)
        if answer.degraded:
            raise ProblemError(not_whole(answer.asked, answer.missing))
        return answer.result.fused, answer.part, str(answer.result.info["model_hash"])


def add_routes(app: FastAPI, service: FusionService, study: Study | None) -> None:
    """GET /v1/study and what is under it; 404 where no study is set up."""
    reading = Reading(study, service) if study is not None else None
    answers: dict[int | str, dict[str, Any]] = {k: PROBLEMS[k] for k in (401, 422)}
    answers[404] = {"description": "no study here, or no such item", "content": PROBLEMS[422]["content"]}

    def here() -> Reading:
        if reading is None:
            todo = "start the service with --study FILE"
            raise ProblemError(Problem(status=404, title="no reader study here", todo=todo))
        return reading

    @app.get("/v1/study", tags=["Reader study"], responses=answers)
    async def describe() -> StudyRow:
        """Title, questions and scale."""
        found = here().study
        items = len(await asyncio.to_thread(here().case_ids)) * len(found.arms)
        return StudyRow(
            title=found.title,
            questions=list(found.questions),
            scale=found.scale,
            items=items,
            research_use=RESEARCH_USE,
        )

    @app.get("/v1/study/summary", tags=["Reader study"], responses=answers)
    async def summary() -> list[dict[str, Any]]:
        """Ratings by question and arm; this is what unblinds, so it is for those who run the study."""
        return await asyncio.to_thread(here().answers.summary)

    @app.get("/v1/study/readers/{reader}", tags=["Reader study"], responses=answers)
    async def next_item(reader: Reader) -> NextItem:
        """The next item of a reader; asked again after a break it is the same."""
        return await asyncio.to_thread(here().next, reader)

    @app.get(
        "/v1/study/readers/{reader}/{item}/{picture}",
        tags=["Reader study"],
        response_class=Response,
        responses={
            **answers,
            200: {"content": {"application/octet-stream": {}}},
            429: PROBLEMS[429],
            503: PROBLEMS[503],
        },
    )
    async def picture(request: Request, reader: Reader, item: int, picture: Picture) -> Response:
        """One picture of an item as NIfTI."""
        data = await unless_gone(request, here().picture(reader, item, picture))
        return Response(data, media_type="application/octet-stream")

    @app.post("/v1/study/readers/{reader}/{item}", tags=["Reader study"], responses=answers)
    async def rate(reader: Reader, item: int, body: Rating) -> NextItem:
        """Keep one answer; says what is next."""
        rated = await asyncio.to_thread(here().item, reader, item)
        await asyncio.to_thread(here().answers.add, rated, reader, body.ratings, body.seconds)
        return await asyncio.to_thread(here().next, reader)

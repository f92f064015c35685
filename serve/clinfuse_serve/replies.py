"""What a fused reply is made of: parameters read, uploads fused, the map that was asked for, headers, media types."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from fastapi import Request, Response, UploadFile
from pydantic import ValidationError

from clinfuse import RESEARCH_USE
from clinfuse.outputs import bundle
from clinfuse_serve import problems
from clinfuse_serve.answer import Answer, Progress, reply_of, silent
from clinfuse_serve.problems import ProblemError
from clinfuse_serve.schemas import FuseParams
from clinfuse_serve.service import FusionService
from clinfuse_serve.streaming import Final
from clinfuse_serve.uploads import received

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {problems.MEDIA_TYPE: {"schema": {"type": "object"}}}}
    for status, text in {
        401: "no token, or a wrong one",
        410: "the case is no longer kept; send the images again",
        413: "larger than this service takes",
        422: "input that cannot be used: expected, found, to do",
        429: "the queue is full; see Retry-After",
        503: "no member answered, or none was asked before the deadline; says which are missing",
    }.items()
}
MEDIA = {
    ".json": "application/json",
    ".png": "image/png",
    ".dcm": "application/dicom",
    ".nii": "application/octet-stream",
    ".gz": "application/gzip",
}
IMAGES = ("image/png", "application/dicom", "application/octet-stream", "application/gzip")


def parse_params(text: str) -> FuseParams:
    """The checked parameters; ProblemError 422 says which field is wrong and how."""
    with checking_params():
        return FuseParams.model_validate_json(text)


@contextmanager
def checking_params() -> Iterator[None]:
    """ProblemError 422 for parameters that pydantic refuses, deep or long as they may be."""
    try:
        yield
    except ValidationError as error:
        raise ProblemError(problems.invalid("params cannot be used", error.errors())) from error


async def fuse_uploads(
    request: Request,
    service: FusionService,
    params: FuseParams,
    uploads: Mapping[str, UploadFile | None],
    tell: Progress = silent,
) -> Answer:
    """Fuse what was uploaded, and note for the request's log line what came of it; raises as `FusionService.fuse`."""
    streams = {role: upload.file for role, upload in uploads.items() if upload is not None}
    with ExitStack() as stack:
        files = await asyncio.to_thread(stack.enter_context, received(streams, service.limits.voxels))
        answer = await service.fuse(params, files, tell)
    request.state.facts = log_facts(answer)
    return answer


async def answer_fuse(
    request: Request, service: FusionService, params: FuseParams, uploads: Mapping[str, UploadFile | None]
) -> Response:
    """Fuse and make the reply that was asked for."""
    answer = await fuse_uploads(request, service, params, uploads)
    if params.output == "json":
        body = reply_of(answer).model_dump_json().encode()
        return Response(body, media_type="application/json", headers=reply_headers(answer))
    if params.output == "bundle":
        data, media, headers = await made_bundle(service, answer, params)
        return Response(data, media_type=media, headers=dict(headers))
    name, data = await chosen_map(service, answer, params)
    return Response(data, media_type=media_type(name), headers={**reply_headers(answer), **attachment(name)})


async def chosen_map(service: FusionService, answer: Answer, params: FuseParams) -> tuple[str, bytes]:
    """Name and bytes of the map that was asked for; ProblemError 422 if this model gives none such."""
    files = await service.encode(answer, params)
    if params.image not in files:
        raise ProblemError(problems.no_map(params.image))
    return files[params.image]


async def made_bundle(service: FusionService, answer: Answer, params: FuseParams) -> Final:
    """All files of an answer as one zip, with its media type and headers."""
    data = bundle(await service.encode(answer, params))
    headers = {**reply_headers(answer), **attachment(f"{answer.kept.token}.zip")}
    return data, "application/zip", headers


def log_facts(answer: Answer) -> dict[str, Any]:
    """What the request's log line says of a fused pair: numbers only."""
    shape, members = list(answer.part.shape), f"{answer.used}/{answer.asked}"
    return {"shape": shape, "members": members, "degraded": answer.degraded, "phases": answer.seconds}


def attachment(name: str) -> dict[str, str]:
    """The header that names a file."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def media_type(name: str) -> str:
    """What a file of a reply is, by its name."""
    return MEDIA[name[name.rindex(".") :]]


def reply_headers(answer: Answer) -> dict[str, str]:
    """What every fused reply says about itself."""
    timing = ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in answer.seconds.items())
    return {
        "X-Clinfuse-Case": answer.kept.token,
        "X-Clinfuse-Members": f"{answer.used}/{answer.asked}",
        "X-Clinfuse-Degraded": "true" if answer.degraded else "false",
        "X-Clinfuse-Simulated": "true" if answer.kept.case.attrs.get("simulated") else "false",
        "X-Research-Use": RESEARCH_USE,
        "Server-Timing": timing,
    }

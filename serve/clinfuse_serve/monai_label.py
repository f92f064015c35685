"""MONAI Label's HTTP shape, so that a client of that protocol (3D Slicer's plug-in) can ask for a fused image.

The protocol sends one image (`file`) or names one in the server's store (`image`), and at most one more file
(`label`). Here `image` names an example case, or `file` is the anatomy image and `label` (or `companion`) the
companion image. The reply is multipart/form-data with the parts `params` and `file`, as that client expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from pydantic import TypeAdapter

from clinfuse import RESEARCH_USE, __version__
from clinfuse_serve.answer import reply_of
from clinfuse_serve.problems import Problem, ProblemError
from clinfuse_serve.replies import (
    IMAGES,
    PROBLEMS,
    checking_params,
    chosen_map,
    fuse_uploads,
    media_type,
    reply_headers,
)
from clinfuse_serve.schemas import FuseParams
from clinfuse_serve.service import FusionService
from clinfuse_serve.streaming import unless_gone

MODEL = "clinfuse"
OBJECT = TypeAdapter(dict[str, Any])
Upload = Annotated[UploadFile | None, File()]
Output = Literal["all", "image", "json"]


def add_routes(app: FastAPI, service: FusionService) -> None:
    """GET /info/ and POST /infer/{model}."""
    unknown = {"description": "no such model", "content": PROBLEMS[422]["content"]}
    content: dict[str, Any] = {kind: {} for kind in ("multipart/form-data", "application/json", *IMAGES)}
    answers: dict[int | str, dict[str, Any]] = {200: {"content": content}, 404: unknown, **PROBLEMS}

    @app.get("/info", include_in_schema=False)
    @app.get("/info/", tags=["MONAI Label"], responses={401: PROBLEMS[401]})
    async def info() -> dict[str, Any]:
        """The server's models in MONAI Label's words."""
        presets = [row.name for row in await service.preset_rows()]
        return describe(service, presets, [row.id for row in await service.example_rows()])

    @app.post("/infer/{model}", tags=["MONAI Label"], response_class=Response, responses=answers)
    async def infer(
        request: Request,
        model: str,
        image: str = "",
        output: Output = "all",
        params: Annotated[str, Form()] = "{}",
        file: Upload = None,
        label: Upload = None,
        companion: Upload = None,
        brain: Upload = None,
        bone: Upload = None,
        lesion: Upload = None,
    ) -> Response:
        """Fuse, and answer as MONAI Label does."""
        if model != MODEL:
            raise ProblemError(Problem(status=404, title="no such model", expected=MODEL))
        wanted = known_params(params, image if file is None else "")
        uploads = {"anatomy": file, "companion": companion or label, "brain": brain, "bone": bone}
        uploads["lesion"] = lesion
        return await unless_gone(request, answer_infer(request, service, wanted, uploads, output))


async def answer_infer(
    request: Request,
    service: FusionService,
    params: FuseParams,
    uploads: Mapping[str, UploadFile | None],
    output: Output,
) -> Response:
    """Fuse and make the reply that a MONAI Label client asked for."""
    answer = await fuse_uploads(request, service, params, uploads)
    reply = reply_of(answer).model_dump(mode="json")
    facts = json.dumps({"label_names": {}, "description": RESEARCH_USE, "clinfuse": reply})
    if output == "json":
        return Response(facts, media_type="application/json")
    name, data = await chosen_map(service, answer, params)
    headers = reply_headers(answer)
    if output == "image":
        return Response(data, media_type=media_type(name), headers=headers)
    boundary = uuid4().hex
    body = multipart(boundary, facts.encode(), name, data)
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}", headers=headers)


def describe(service: FusionService, presets: list[str], examples: list[str]) -> dict[str, Any]:
    """What GET /info/ says."""
    model = {
        "type": "others",
        "labels": {},
        "dimension": 3,
        "description": f"Fused MRI and CT with uncertainty. {RESEARCH_USE}",
        "config": {"preset": presets, "seed": 0, "members": service.backend.members},
    }
    return {
        "name": "clinfuse",
        "description": RESEARCH_USE,
        "version": __version__,
        "labels": {},
        "models": {MODEL: model},
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {"total": len(examples), "completed": 0, "images": examples},
    }


def known_params(text: str, image: str) -> FuseParams:
    """The checked parameters of those that POST /v1/fuse knows; the protocol's own words are left out.

    Raises:
        ProblemError: 422 says what is wrong and how.
    """
    with checking_params():
        given = OBJECT.validate_json(text or "{}")
        kept = {key: given[key] for key in given.keys() & FuseParams.model_fields.keys() - {"output"}}
        if isinstance(kept.get("preset"), list):
            kept["preset"] = kept["preset"][0] if kept["preset"] else "balanced"
        if image:
            kept["example"] = image
        return FuseParams.model_validate({**kept, "format": "nifti"})


def multipart(boundary: str, params: bytes, name: str, data: bytes) -> bytes:
    """multipart/form-data with the parts `params` (JSON) and `file` (the image)."""
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    return b"".join(
        [
            f'{head}"params"\r\nContent-Type: application/json\r\n\r\n'.encode(),
            params,
            f'\r\n{head}"file"; filename="{name}"\r\nContent-Type: application/gzip\r\n\r\n'.encode(),
            data,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
    )

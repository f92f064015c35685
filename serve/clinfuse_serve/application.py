"""The HTTP application: routes and what is answered to errors; runs under Ray Serve or any ASGI server."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import ClinfuseError
from clinfuse_serve import metrics, monai_label, pages, problems, streaming, study_routes
from clinfuse_serve.answer import Progress
from clinfuse_serve.middleware import Guard
from clinfuse_serve.problems import Problem
from clinfuse_serve.replies import IMAGES, PROBLEMS, answer_fuse, fuse_uploads, made_bundle, parse_params
from clinfuse_serve.schemas import ExampleRow, FuseParams, FuseReply, Health, ModelRow, PresetBody, PresetRow
from clinfuse_serve.service import FusionService
from clinfuse_serve.study import Study

Upload = Annotated[UploadFile | None, File(description="NIfTI (.nii, .nii.gz) or PNG")]


def build_application(
    service: FusionService,
    *,
    digest: str | None = None,
    loopback_only: bool = True,
    study: Study | None = None,
) -> FastAPI:
    """The application around a service.

    Args:
        service: does the work.
        digest: SHA-256 of the token, or None for a service without one.
        loopback_only: refuse requests addressed to another host's name.
        study: a reader study to run, or None.
    """
    app = FastAPI(
        title="clinfuse",
        version=__version__,
        description=f"Fusion of co-registered head images. {RESEARCH_USE}",
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,  # so that `curl -T preset.json` works; other sites' pages are refused by origin
    )
    app.add_middleware(Guard, gate=service.gate, digest=digest, loopback_only=loopback_only)
    _add_handlers(app, service)
    pages.add_pages(app)
    _add_information(app, service)
    _add_fuse(app, service)
    monai_label.add_routes(app, service)
    study_routes.add_routes(app, service, study)
    _describe_params(app)
    return app


def _describe_params(app: FastAPI) -> None:
    """Put FuseParams into the contract: OpenAPI sees the form field `params` as text only."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        made = FuseParams.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema["components"]["schemas"]
        parts |= made.pop("$defs", {})
        parts["FuseParams"] = made
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _add_information(app: FastAPI, service: FusionService) -> None:
    @app.get("/healthz", responses={503: PROBLEMS[503]})
    async def healthz(response: Response) -> Health:
        """Whether the service can answer, and with how many members."""
        health = await service.health()
        if health.status == "down":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return health

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Numbers of all aggregator replicas, in Prometheus' text form."""
        text = metrics.to_text(await service.all_metrics())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/presets", responses={401: PROBLEMS[401]})
    async def presets() -> list[PresetRow]:
        """All presets with their values and a sentence for a clinician."""
        return await service.preset_rows()

    @app.put("/v1/presets/{name}", responses={k: PROBLEMS[k] for k in (401, 422)})
    async def put_preset(name: str, body: PresetBody) -> PresetRow:
        """Set a preset on every replica, at once and until the service stops."""
        return PresetRow(**(await service.change_preset(body.preset(name))).as_dict())

    @app.get("/v1/models", responses={401: PROBLEMS[401]})
    async def models() -> list[ModelRow]:
        """The model that is served."""
        return [await service.model_row()]

    @app.get("/v1/examples", responses={401: PROBLEMS[401]})
    async def examples() -> list[ExampleRow]:
        """Cases offered for trying out."""
        return await service.example_rows()


def _add_fuse(app: FastAPI, service: FusionService) -> None:
    @app.post(
        "/v1/fuse",
        response_model=FuseReply,
        responses={
            200: {
                "description": "one image, a zip of all files, or facts",
                "content": {kind: {} for kind in (*IMAGES, "application/zip", "multipart/mixed")},
            },
            **PROBLEMS,
        },
    )
    async def fuse(
        request: Request,
        params: Annotated[str, Form(description="JSON, see schema FuseParams")] = "{}",
        anatomy: Upload = None,
        companion: Upload = None,
        brain: Upload = None,
        bone: Upload = None,
        lesion: Upload = None,
    ) -> Response:
        """Fuse one pair of images; every reply says how many members answered."""
        uploads = {"anatomy": anatomy, "companion": companion, "brain": brain, "bone": bone, "lesion": lesion}
        wanted = parse_params(params)
        if wanted.output == "stream":

            async def work(tell: Progress) -> streaming.Final:
                answer = await fuse_uploads(request, service, wanted, uploads, tell)
                return await made_bundle(service, answer, wanted)

            return await streaming.stream(request, work)
        return await streaming.unless_gone(request, answer_fuse(request, service, wanted, uploads))


def _add_handlers(app: FastAPI, service: FusionService) -> None:
    def respond(request: Request, problem: Problem) -> Response:
        request_id = getattr(request.state, "request_id", "")
        return Response(
            problem.body(request_id),
            status_code=problem.status,
            media_type=problems.MEDIA_TYPE,
            headers=problem.headers,
        )

    @app.exception_handler(RequestValidationError)
    async def wrong_form(request: Request, error: RequestValidationError) -> Response:
        return respond(request, problems.invalid("the request cannot be used", error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return respond(request, problems.too_large(service.limits.body_bytes))
        if (
            error.status_code == HTTPStatus.BAD_REQUEST
        ):  # the framework's word for a body that it cannot parse
            return respond(request, problems.unreadable(error.detail, error.__cause__))
        title = HTTPStatus(error.status_code).phrase.lower()
        headers = dict(error.headers or {})
        return respond(request, Problem(status=error.status_code, title=title, headers=headers))

    @app.exception_handler(ClinfuseError)
    async def ours(request: Request, error: ClinfuseError) -> Response:
        return respond(request, problems.from_error(error))

"""The web pages and their files: held in memory, packed once, known by hash; nothing else is ever served as a file."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PREFIX = "/viewer/"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Page:
    """One file: its bytes, the same packed, its media type and its hash."""

    data: bytes
    packed: bytes
    media: str
    tag: str


@cache
def pages() -> dict[str, Page]:
    """Every file under `viewer/`, by its path there."""
    found: dict[str, Page] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif (suffix := entry.name[entry.name.rfind(".") :]) in MEDIA:
                data = entry.read_bytes()
                tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
                found[prefix + entry.name] = Page(data, gzip.compress(data, 6, mtime=0), MEDIA[suffix], tag)

    walk(resources.files("clinfuse_serve").joinpath("viewer"), "")
    return found


def add_pages(app: FastAPI) -> None:
    """GET / (the viewer), /study (the reader study) and the files that they use."""

    @app.get("/", include_in_schema=False)
    async def viewer(request: Request) -> Response:
        return _respond(request, "viewer.html")

    @app.get("/study", include_in_schema=False)
    async def study(request: Request) -> Response:
        return _respond(request, "study.html")

    @app.get(PREFIX + "{path:path}", include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        return _respond(request, path)


def _respond(request: Request, path: str) -> Response:
    page = pages().get(path)
    if page is None:
        raise HTTPException(404)
    headers = {
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-cache",
        "ETag": page.tag,
        "Vary": "Accept-Encoding",
    }
    if request.headers.get("if-none-match") == page.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(page.data, media_type=page.media, headers=headers)
    return Response(page.packed, media_type=page.media, headers={**headers, "Content-Encoding": "gzip"})

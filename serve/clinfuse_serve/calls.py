"""What a client sends and how it reads the answer, without doing either: shared by `Client` and `AsyncClient`.

Every call here may be repeated without harm: the same pair, preset and seed give the same image.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clinfuse.errors import ClinfuseError, ConfigError, InputError
from clinfuse.outputs import write_files
from clinfuse.presets import Preset
from clinfuse_serve.problems import invalid
from clinfuse_serve.schemas import FuseParams

AGAIN = frozenset({429, 502, 503, 504})
LONGEST_WAIT_S = 30.0
ROLES = {"anatomy", "companion", "brain", "bone", "lesion"}
Source = str | Path | bytes
Progress = Callable[[int, int], None]


class ServiceError(ClinfuseError):
    """The service refused or failed; holds its problem JSON.

    Attributes:
        status: HTTP status, 0 if nobody answered.
        problem: the service's problem JSON, or {}.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status, self.problem = status, dict(problem)
        parts = [str(problem.get("title") or "the service gave no reason")]
        words = (("expected", "expected"), ("found", "found"), ("todo", "to do"))
        parts += [f"{word} {problem[key]}" for key, word in words if problem.get(key)]
        super().__init__(f"{'; '.join(parts)} (HTTP {status})" if status else "; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.status, self.problem))


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method, path: of HTTP.
        options: of `httpx.Client.request`.
        progress: told of (draws done, draws in all) while a streamed reply arrives, or None for a plain one.
    """

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    progress: Progress | None = None


@dataclass(frozen=True)
class Reply:
    """One reply; status 0 if the connection failed, with the error's name in `reason`."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    reason: str = ""
    final: bool = False

    @property
    def ok(self) -> bool:
        """Whether the request was answered as asked."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class FusedReply:
    """A fused pair as it came from the service.

    Attributes:
        files: file name → bytes, as `clinfuse fuse` would have written them.
        info: the JSON sidecar.
        case: token for fusing the same pair again without sending it.
        members_used, members_asked: how many members answered.
        degraded: fewer answered than were asked.
    """

    files: dict[str, bytes]
    info: dict[str, Any]
    case: str
    members_used: int
    members_asked: int
    degraded: bool

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write all files into a folder; returns file name → path."""
        return write_files({name: (name, data) for name, data in self.files.items()}, folder)


def exchange(call: Call, retries: int) -> Generator[Call | float, Reply | None, Reply]:
    """The conversation about one call: yields the call to send, or seconds to wait; returns the good reply.

    Raises:
        ServiceError: the service refused, or did not answer however often it was asked.
    """
    for attempt in range(retries + 1):
        reply = yield call
        assert reply is not None
        if reply.ok:
            return reply
        if attempt == retries or not worth_repeating(reply):
            raise ServiceError(reply.status, _problem(reply))
        yield _pause_s(attempt, reply.headers.get("retry-after"))
    raise AssertionError("unreachable")


def worth_repeating(reply: Reply) -> bool:
    """Whether the same request may succeed later: full, restarting, connection lost, or a 500 of the proxy's own."""
    if reply.status == 0:
        return not reply.final
    foreign = "problem+json" not in reply.headers.get("content-type", "")
    return reply.status in AGAIN or (reply.status == 500 and foreign)


def put_preset(preset: Preset) -> Call:
    """Set a preset on all replicas."""
    values = {key: value for key, value in preset.as_dict().items() if key != "name"}
    return Call("PUT", f"/v1/presets/{preset.name}", {"json": values})


def fuse(
    anatomy: Source | None,
    companion: Source | None,
    masks: Mapping[str, Source] | None,
    params: Mapping[str, Any],
    progress: Progress | None = None,
) -> Call:
    """Fuse one pair.

    Raises:
        InputError: an image is not there, or a mask of an unknown name.
        ConfigError: parameters that no service takes.
    """
    try:
        checked = FuseParams.model_validate(params).model_dump_json(exclude_defaults=True)
    except ValidationError as error:
        found = invalid("params cannot be used", error.errors())
        raise ConfigError(found.title, expected="what FuseParams describes", found=found.found) from error
    sources = {"anatomy": anatomy, "companion": companion, **(masks or {})}
    unknown = sorted(set(sources) - ROLES)
    if unknown:
        raise InputError("no such mask", expected="brain, bone or lesion", found=", ".join(unknown))
    files = {role: (role, _bytes(source, role)) for role, source in sources.items() if source is not None}
    options = {"data": {"params": checked}, "files": files or None}
    return Call("POST", "/v1/fuse", options, progress)


def read_fused(reply: Reply) -> FusedReply:
    """The files of a bundle and what its headers say."""
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        files = {Path(name).name: archive.read(name) for name in archive.namelist()}
    info = next(json.loads(data) for name, data in files.items() if name.endswith(".json"))
    used, asked = (int(n) for n in reply.headers["x-clinfuse-members"].split("/"))
    return FusedReply(
        files=files,
        info=info,
        case=reply.headers["x-clinfuse-case"],
        members_used=used,
        members_asked=asked,
        degraded=reply.headers["x-clinfuse-degraded"] == "true",
    )


class Parts:
    """Reads a streamed reply as it arrives: tells the progress, keeps the last part as the reply."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.reply = Reply(0, {}, b"", "the reply ended early")
        self._held = bytearray()
        self._headers: dict[str, str] | None = None  # of the part that is arriving

    def feed(self, piece: bytes) -> None:
        """Take what has arrived."""
        self._held += piece
        for headers, content in self._whole():
            kind = headers["content-type"]
            if kind == "application/json":
                facts = json.loads(content)
                self.progress(facts["done"], facts["all"])
            else:
                self.reply = Reply(int(headers.get("x-status", "200")), headers, content)

    def _whole(self) -> Iterator[tuple[dict[str, str], bytes]]:
        """Parts that have arrived whole; nothing is copied before the length that a part's head tells is there."""
        while (headers := self._head()) is not None:
            length = int(headers["content-length"])
            if len(self._held) < length + 2:
                return
            content = bytes(self._held[:length])
            del self._held[: length + 2]
            self._headers = None
            yield headers, content

    def _head(self) -> dict[str, str] | None:
        if self._headers is None and (end := self._held.find(b"\r\n\r\n")) >= 0:
            lines = self._held[:end].decode("latin-1").split("\r\n")[1:]
            self._headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            del self._held[: end + 4]
        return self._headers


def _pause_s(attempt: int, retry_after: str | None) -> float:
    if retry_after and retry_after.isdigit():
        return min(float(retry_after), LONGEST_WAIT_S) * random.uniform(1.0, 1.2)
    return min(0.25 * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.7, 1.3)


def _bytes(source: Source, role: str) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if not path.is_file():
        raise InputError(f"the {role} image is missing", expected="a file", found="no such file")
    return path.read_bytes()


def _problem(reply: Reply) -> dict[str, Any]:
    if reply.status == 0:
        return {
            "title": "nobody answers",
            "expected": "a running clinfuse service",
            "found": reply.reason,
            "todo": "start it with `clinfuse serve MODEL`, or correct the URL",
        }
    try:
        found = json.loads(reply.content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {"title": "the service failed", "found": reply.reason}
    return found if isinstance(found, dict) else {}

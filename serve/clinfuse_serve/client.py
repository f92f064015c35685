"""Talk to a clinfuse service from Python: typed, and patient, because fusing is repeatable (same seed, same image).

>>> with Client("http://127.0.0.1:8000") as client:
...     reply = client.fuse("mr.nii.gz", "ct.nii.gz", preset="bone_tumor")
...     reply.save("fused")
"""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from clinfuse.errors import ClinfuseError, InputError
from clinfuse.outputs import write_files
from clinfuse.presets import Preset
from clinfuse_serve.schemas import ExampleRow, FuseParams, FuseReply, Health, ModelRow, PresetRow

AGAIN = frozenset({429, 502, 503, 504})
LONGEST_WAIT_S = 30.0
DEFAULT_NAMES = {"anatomy", "companion", "brain", "bone", "lesion"}
Source = str | Path | bytes


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


class Client:
    """A connection to one service.

    Args:
        url: e.g. "http://127.0.0.1:8000".
        token: what the service asks for, or None.
        timeout_s: longest wait for one reply.
        retries: how often a request is repeated when the service is full, restarting or unreachable.
        verify: certificate authority file for HTTPS, or True for the system's.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 300.0,
        retries: int = 5,
        verify: str | bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url, self.retries, self._sleep = url.rstrip("/"), retries, sleep
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, verify=verify, trust_env=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> Health:
        """Whether the service can answer; asked once, without repeating."""
        try:
            return Health.model_validate_json(self._http.get("/healthz").content)
        except httpx.TransportError as error:
            raise ServiceError(0, _nobody(error)) from error

    def presets(self) -> list[PresetRow]:
        """All presets."""
        return [PresetRow(**row) for row in self._json("GET", "/v1/presets")]

    def put_preset(self, preset: Preset) -> PresetRow:
        """Set a preset on all replicas."""
        values = {key: value for key, value in preset.as_dict().items() if key != "name"}
        return PresetRow(**self._json("PUT", f"/v1/presets/{preset.name}", json=values))

    def models(self) -> list[ModelRow]:
        """The model that is served."""
        return [ModelRow(**row) for row in self._json("GET", "/v1/models")]

    def examples(self) -> list[ExampleRow]:
        """Cases offered for trying out."""
        return [ExampleRow(**row) for row in self._json("GET", "/v1/examples")]

    def metrics(self) -> str:
        """Numbers in Prometheus' text form."""
        return self._ask("GET", "/metrics").text

    def fuse(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Mapping[str, Source] | None = None,
        **params: Any,
    ) -> FusedReply:
        """Fuse one pair and fetch all files.

        Args:
            anatomy, companion: NIfTI or PNG file, or its bytes; None if `case` or `example` names a case.
            masks: "brain", "bone", "lesion" → file or bytes.
            params: as in `FuseParams`: preset, weights, steps, seed, members, case, example, …

        Raises:
            ServiceError: the service refused (problem inside), or nobody answered.
        """
        reply = self._fuse(anatomy, companion, masks, {**params, "output": "bundle"})
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            files = {Path(name).name: archive.read(name) for name in archive.namelist()}
        info = next(json.loads(data) for name, data in files.items() if name.endswith(".json"))
        used, asked = (int(n) for n in reply.headers["X-Clinfuse-Members"].split("/"))
        return FusedReply(
            files=files,
            info=info,
            case=reply.headers["X-Clinfuse-Case"],
            members_used=used,
            members_asked=asked,
            degraded=reply.headers["X-Clinfuse-Degraded"] == "true",
        )

    def describe(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Mapping[str, Source] | None = None,
        **params: Any,
    ) -> FuseReply:
        """As `fuse`, but only facts come back, no images."""
        reply = self._fuse(anatomy, companion, masks, {**params, "output": "json"})
        return FuseReply.model_validate_json(reply.content)

    def _fuse(
        self,
        anatomy: Source | None,
        companion: Source | None,
        masks: Mapping[str, Source] | None,
        params: dict[str, Any],
    ) -> httpx.Response:
        checked = FuseParams.model_validate(params).model_dump_json(exclude_defaults=True)
        sources = {"anatomy": anatomy, "companion": companion, **(masks or {})}
        unknown = sorted(set(sources) - DEFAULT_NAMES)
        if unknown:
            raise InputError("no such mask", expected="brain, bone or lesion", found=", ".join(unknown))
        files = {role: (role, _bytes(source, role)) for role, source in sources.items() if source is not None}
        form = {"params": checked}
        return self._ask("POST", "/v1/fuse", data=form, files=files or None)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._ask(method, path, **options).json()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, repeated with growing pauses while that can help."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                reply = self._http.request(method, path, **options)
            except (
                httpx.ConnectError,
                httpx.ReadError,
                httpx.RemoteProtocolError,
                httpx.WriteError,
            ) as error:
                if last:
                    raise ServiceError(0, _nobody(error)) from error
                self._sleep(_pause_s(attempt, None))
                continue
            except httpx.TransportError as error:
                raise ServiceError(0, _nobody(error)) from error
            if reply.is_success:
                return reply
            if last or not worth_repeating(reply.status_code, reply.headers.get("content-type", "")):
                raise ServiceError(reply.status_code, _problem(reply))
            self._sleep(_pause_s(attempt, reply.headers.get("retry-after")))
        raise AssertionError("unreachable")


def worth_repeating(status: int, content_type: str) -> bool:
    """Whether the same request may succeed later: full, restarting, or a 500 that is not the application's own."""
    return status in AGAIN or (status == 500 and "problem+json" not in content_type)


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


def _problem(reply: httpx.Response) -> dict[str, Any]:
    try:
        found = reply.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {"title": "the service failed", "found": reply.reason_phrase}
    return found if isinstance(found, dict) else {}


def _nobody(error: Exception) -> dict[str, Any]:
    return {
        "title": "nobody answers",
        "expected": "a running clinfuse service",
        "found": type(error).__name__,
        "todo": "start it with `clinfuse serve MODEL`, or correct the URL",
    }

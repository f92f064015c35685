"""Talk to a clinfuse service from Python, waiting or async: typed, and patient, because fusing is repeatable.

>>> with Client("http://127.0.0.1:8000") as client:
...     reply = client.fuse("mr.nii.gz", "ct.nii.gz", preset="bone_tumor")
...     reply.save("fused")

>>> async with AsyncClient("http://127.0.0.1:8000") as client:
...     replies = await asyncio.gather(*(client.fuse(mr, ct) for mr, ct in pairs))
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx

from clinfuse.errors import ConfigError
from clinfuse.presets import Preset
from clinfuse_serve import calls
from clinfuse_serve.calls import Call, FusedReply, Parts, Progress, Reply, ServiceError, Source, exchange
from clinfuse_serve.schemas import ExampleRow, FuseReply, Health, ModelRow, PresetRow

__all__ = ["AsyncClient", "Client", "FusedReply", "ServiceError"]
Masks = Mapping[str, Source] | None
PRESETS, MODELS = Call("GET", "/v1/presets"), Call("GET", "/v1/models")
EXAMPLES, METRICS, HEALTH = Call("GET", "/v1/examples"), Call("GET", "/metrics"), Call("GET", "/healthz")
LOST = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)


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
        self.url, self.retries, self._sleep = url.rstrip("/"), retries, sleep
        self._http = httpx.Client(**_options(self.url, token, timeout_s, verify))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> Health:
        """Whether the service can answer; asked once, without repeating."""
        return _health(self._send(HEALTH))

    def presets(self) -> list[PresetRow]:
        """All presets."""
        return [PresetRow(**row) for row in json.loads(self._ask(PRESETS).content)]

    def put_preset(self, preset: Preset) -> PresetRow:
        """Set a preset on all replicas."""
        return PresetRow(**json.loads(self._ask(calls.put_preset(preset)).content))

    def models(self) -> list[ModelRow]:
        """The model that is served."""
        return [ModelRow(**row) for row in json.loads(self._ask(MODELS).content)]

    def examples(self) -> list[ExampleRow]:
        """Cases offered for trying out."""
        return [ExampleRow(**row) for row in json.loads(self._ask(EXAMPLES).content)]

    def metrics(self) -> str:
        """Numbers in Prometheus' text form."""
        return self._ask(METRICS).content.decode()

    def fuse(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Masks = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> FusedReply:
        """Fuse one pair and fetch all files.

        Args:
            anatomy, companion: NIfTI or PNG file, or its bytes; None if `case` or `example` names a case.
            masks: "brain", "bone", "lesion" → file or bytes.
            progress: called with (draws done, draws in all) while the service works.
            params: as in `FuseParams`: companion_kind, preset, weights, steps, seed, members, case, example, …

        Raises:
            ConfigError: parameters that no service takes. ServiceError: the service refused (problem inside), or nobody
                answered.
        """
        return calls.read_fused(self._ask(_bundle(anatomy, companion, masks, params, progress)))

    def describe(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Masks = None,
        **params: Any,
    ) -> FuseReply:
        """As `fuse`, but only facts come back, no images."""
        reply = self._ask(calls.fuse(anatomy, companion, masks, {**params, "output": "json"}))
        return FuseReply.model_validate_json(reply.content)

    def _ask(self, call: Call) -> Reply:
        talk = exchange(call, self.retries)
        todo = next(talk)
        try:
            while True:
                if isinstance(todo, Call):
                    todo = talk.send(self._send(todo))
                else:
                    self._sleep(todo)
                    todo = next(talk)
        except StopIteration as done:
            return done.value

    def _send(self, call: Call) -> Reply:
        try:
            if call.progress is None:
                return _reply(self._http.request(call.method, call.path, **call.options))
            with self._http.stream(call.method, call.path, **call.options) as response:
                if not response.is_success:
                    response.read()
                    return _reply(response)
                parts = Parts(call.progress)
                for piece in response.iter_bytes():
                    parts.feed(piece)
                return parts.reply
        except httpx.TransportError as error:
            return _no_reply(error)


class AsyncClient:
    """As `Client`, every method to be awaited; several calls may be under way at once."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 300.0,
        retries: int = 5,
        verify: str | bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url, self.retries, self._sleep = url.rstrip("/"), retries, sleep
        self._http = httpx.AsyncClient(**_options(self.url, token, timeout_s, verify))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def health(self) -> Health:
        """As `Client.health`."""
        return _health(await self._send(HEALTH))

    async def presets(self) -> list[PresetRow]:
        """As `Client.presets`."""
        return [PresetRow(**row) for row in json.loads((await self._ask(PRESETS)).content)]

    async def put_preset(self, preset: Preset) -> PresetRow:
        """As `Client.put_preset`."""
        return PresetRow(**json.loads((await self._ask(calls.put_preset(preset))).content))

    async def models(self) -> list[ModelRow]:
        """As `Client.models`."""
        return [ModelRow(**row) for row in json.loads((await self._ask(MODELS)).content)]

    async def examples(self) -> list[ExampleRow]:
        """As `Client.examples`."""
        return [ExampleRow(**row) for row in json.loads((await self._ask(EXAMPLES)).content)]

    async def metrics(self) -> str:
        """As `Client.metrics`."""
        return (await self._ask(METRICS)).content.decode()

    async def fuse(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Masks = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> FusedReply:
        """As `Client.fuse`."""
        return calls.read_fused(await self._ask(_bundle(anatomy, companion, masks, params, progress)))

    async def describe(
        self,
        anatomy: Source | None = None,
        companion: Source | None = None,
        *,
        masks: Masks = None,
        **params: Any,
    ) -> FuseReply:
        """As `Client.describe`."""
        reply = await self._ask(calls.fuse(anatomy, companion, masks, {**params, "output": "json"}))
        return FuseReply.model_validate_json(reply.content)

    async def _ask(self, call: Call) -> Reply:
        talk = exchange(call, self.retries)
        todo = next(talk)
        try:
            while True:
                if isinstance(todo, Call):
                    todo = talk.send(await self._send(todo))
                else:
                    await self._sleep(todo)
                    todo = next(talk)
        except StopIteration as done:
            return done.value

    async def _send(self, call: Call) -> Reply:
        try:
            if call.progress is None:
                return _reply(await self._http.request(call.method, call.path, **call.options))
            async with self._http.stream(call.method, call.path, **call.options) as response:
                if not response.is_success:
                    await response.aread()
                    return _reply(response)
                parts = Parts(call.progress)
                async for piece in response.aiter_bytes():
                    parts.feed(piece)
                return parts.reply
        except httpx.TransportError as error:
            return _no_reply(error)


def _options(url: str, token: str | None, timeout_s: float, verify: str | bool) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    trusted = _trusted(verify) if isinstance(verify, str) else verify
    return {"base_url": url, "headers": headers, "timeout": timeout_s, "verify": trusted, "trust_env": False}


def _trusted(authority: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # missing, or no certificate in it
        raise ConfigError(
            "the authority's certificate cannot be read", expected="a PEM file", found=type(error).__name__
        ) from error


def _bundle(
    anatomy: Source | None,
    companion: Source | None,
    masks: Masks,
    params: Mapping[str, Any],
    progress: Progress | None,
) -> Call:
    output = "bundle" if progress is None else "stream"
    return calls.fuse(anatomy, companion, masks, {**params, "output": output}, progress)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.content, response.reason_phrase)


def _no_reply(error: httpx.TransportError) -> Reply:
    return Reply(0, {}, b"", type(error).__name__, final=not isinstance(error, LOST))


def _health(reply: Reply) -> Health:
    if reply.status == 0:
        raise ServiceError(0, {"title": "nobody answers", "found": reply.reason})
    return Health.model_validate_json(reply.content)

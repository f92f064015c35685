"""Start and stop the service on a running Ray: used by `clinfuse serve`, the demo and the tests."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse_serve.config import APP, ServiceArgs, config_for, with_model
from clinfuse_serve.security import (
    check_token,
    is_loopback,
    require_token_beyond_loopback,
    token_digest,
)
from clinfuse_serve.served_model import read_model

START_S = 300.0
STOP_S = 30.0
LOOK_S = 0.1


@dataclass
class ServeHandle:
    """A running service.

    Attributes:
        url: where it answers.
        own: whether Serve itself was started here, and is shut down with the service.
        config: what was deployed.
    """

    url: str
    own: bool
    config: dict[str, Any] = field(repr=False)
    _stopped: bool = field(default=False, repr=False)

    def stop(self) -> None:
        """Stop the service; calling it again does nothing."""
        if self._stopped:
            return
        from ray import serve

        self._stopped = True
        with _quiet():
            serve.delete(APP)
            if self.own:
                shut_down_serve()

    def roll(self, model_dir: str | Path) -> None:
        """Have another model version loaded beside the one that is served; it takes over when all members have it."""
        self.config = with_model(self.config, _absolute(model_dir))
        deploy(self.config)

    def __enter__(self) -> ServeHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    model_dir: str | Path,
    members: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    *,
    certificate: tuple[str, str] | None = None,
    **options: Any,
) -> ServeHandle:
    """Deploy a model and return once it answers.

    Args:
        model_dir: model folder (students for an answer within a second).
        members: how many of the folder's members to serve; default all.
        host, port: where to listen; port 0 picks a free one.
        token: asked of every client; needed beyond loopback.
        certificate: (certificate file, key file) for HTTPS.
        options: further fields of `ServiceArgs`.

    Raises:
        ConfigError: no token beyond loopback, a port in use, more members than the model has.
        ModelFolderError: the folder holds no usable model.
        ClinfuseError: Ray is not running, or the deployment failed.
    """
    require_token_beyond_loopback(host, token)
    args = ServiceArgs(
        members=checked_members(model_dir, members),
        token_digest=token_digest(check_token(token)) if token is not None else None,
        **options,
    )
    port = free_port(host) if port == 0 else port
    return deploy(config_for(_absolute(model_dir), args, host, port), certificate)


def deploy(config: dict[str, Any], certificate: tuple[str, str] | None = None) -> ServeHandle:
    """Deploy a config on the running Ray and return once the service answers.

    Deployed again with another model in `user_config`, the new version rolls in while the old one answers.

    Raises:
        ConfigError: a port in use. ClinfuseError: Ray is not running, or the deployment failed.
    """
    import ray

    if not ray.is_initialized():
        raise ClinfuseError("Ray is not running; start it first (the command `clinfuse serve` does)")
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    host, port = config["http_options"]["host"], int(config["http_options"]["port"])
    own = start_proxy(host, port, certificate)
    client: Any = _get_global_client()
    with _quiet():
        client.deploy_apps(ServeDeploySchema(**config))
        _wait_until_running(own)
    scheme = "https" if certificate else "http"
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return ServeHandle(f"{scheme}://{shown}:{port}", own, config)


def _absolute(model_dir: str | Path) -> str:
    return str(model_dir) if "://" in str(model_dir) else str(Path(model_dir).resolve())


def _wait_until_running(own: bool) -> None:
    from ray import serve

    failed = ("DEPLOY_FAILED", "UNHEALTHY", "DELETING")
    deadline = time.monotonic() + START_S
    while (state := serve.status().applications.get(APP)) is None or state.status != "RUNNING":
        if (state is not None and state.status in failed) or time.monotonic() > deadline:
            reason = _last_line(state.message) if state else "Serve did not take it"
            serve.delete(APP)
            if own:
                shut_down_serve()
            raise ClinfuseError(f"the service did not start: {reason}")
        time.sleep(LOOK_S)


def shut_down_serve() -> None:
    """As `serve.shutdown`, which waits in a call that its callee never ends, so that Ray reports a failed task."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        ray.get(client._controller.graceful_shutdown.remote(wait=False))
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            try:
                ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            except ValueError:  # it has gone
                break
            time.sleep(LOOK_S)
    serve.shutdown()


def checked_members(model_dir: str | Path, members: int | None) -> int:
    """How many members to serve; reads the model folder, so a wrong one fails before Ray starts anything."""
    there = read_model(model_dir).members
    if members is not None and not 1 <= members <= there:
        raise ConfigError(
            "the model does not have that many members",
            expected=f"1 to {there}",
            found=str(members),
            todo="make more with `clinfuse ensemble`",
        )
    return members or there


def start_proxy(host: str, port: int, certificate: tuple[str, str] | None = None) -> bool:
    """Start Serve with its HTTP proxy there; False if Serve already runs on this cluster at that place.

    Raises:
        ConfigError: the port is taken, or Serve runs already but listens elsewhere.
    """
    from ray import serve

    running = serve_address()
    if running is not None:
        if running != (host, port):
            raise ConfigError(
                "Ray Serve runs already on this cluster at another place",
                expected=f"{running[0]}:{running[1]}",
                found=f"{host}:{port}",
                todo="use that host and port, or stop it with `serve shutdown`",
            )
        return False
    check_port(host, port)
    options: dict[str, Any] = {"host": host, "port": port}
    if certificate:
        options |= {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    with _quiet():
        serve.start(
            http_options=options,
            proxy_location="HeadOnly" if is_loopback(host) else "EveryNode",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    return True


def serve_address() -> tuple[str, int] | None:
    """Host and port that the Serve of this cluster listens on, or is about to; None if no Serve runs."""
    from ray.serve.context import _get_global_client

    with _quiet():
        client = _get_global_client(raise_if_no_controller_running=False)
    return (client.http_config.host, client.http_config.port) if client else None


def free_port(host: str) -> int:
    """A port nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Refuse a port that is taken or not a port; said before Ray spends half a minute."""
    if not 1 <= port <= 65535:
        raise ConfigError("not a port", expected="0 to 65535", found=str(port))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                "cannot listen there",
                expected="a free port on an address of this machine",
                found=f"{host}:{port} ({error.strerror})",
                todo="choose another with --port, or --port 0 for any",
            ) from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Serve's own chatter off; its warnings stay."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Ray Serve itself on a cluster: where it listens, how it starts, how it ends."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse_serve.security import is_loopback

STOP_S = 30.0
LOOK_S = 0.1


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
    with quiet():
        serve.start(
            http_options=options,
            proxy_location="HeadOnly" if is_loopback(host) else "EveryNode",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    return True


def serve_address() -> tuple[str, int] | None:
    """Host and port that the Serve of this cluster listens on, or is about to; None if no Serve runs."""
    import ray
    from ray.serve.context import _get_global_client

    try:
        with quiet():
            client = _get_global_client(raise_if_no_controller_running=False)
    except ray.exceptions.RayError:  # it is on its way out
        return None
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Serve's own chatter off; its warnings stay."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Ray Serve itself on a cluster: where it listens, how it starts, how it ends."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clinfuse.errors import ConfigError
from clinfuse_serve.security import is_loopback

STOP_S = 30.0
LOOK_S = 0.1


@dataclass(frozen=True)
class Place:
    """Where and how Serve answers: fixed once it runs.

    Attributes:
        host, port: where it listens.
        certificate: (certificate file, key file) for HTTPS, or None for HTTP.
    """

    host: str
    port: int
    certificate: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"


def place_of(options: Mapping[str, Any]) -> Place:
    """The place that a config file's `http_options` name.

    Raises:
        ConfigError: a certificate without its key, or the other way round.
    """
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if (certificate is None) != (key is None):
        raise ConfigError(
            "HTTPS needs a certificate and its key",
            expected="both ssl_certfile and ssl_keyfile under http_options, or neither",
            found="one of them",
        )
    files = None if certificate is None or key is None else (str(certificate), str(key))
    return Place(str(options["host"]), int(options["port"]), files)


def start_proxy(place: Place) -> bool:
    """Start Serve with its HTTP proxy there; False if Serve already runs on this cluster at that place.

    Raises:
        ConfigError: the port is taken, or Serve runs already but listens elsewhere or without this certificate.
    """
    from ray import serve

    running = serve_place()
    if running is not None:
        check_same(running, place)
        return False
    check_port(place.host, place.port)
    options: dict[str, Any] = {"host": place.host, "port": place.port}
    if place.certificate:
        options |= dict(zip(("ssl_certfile", "ssl_keyfile"), place.certificate, strict=True))
    with quiet():
        serve.start(
            http_options=options,
            proxy_location="HeadOnly" if is_loopback(place.host) else "EveryNode",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    return True


def check_same(running: Place, wanted: Place) -> None:
    """Refuse a place that the running Serve cannot give: it neither moves nor takes another certificate. One that is
    wanted without a certificate may be had with.

    Raises:
        ConfigError: another host or port, or a certificate with which it was not started.
    """
    if (running.host, running.port) != (wanted.host, wanted.port):
        raise ConfigError(
            "Ray Serve runs already on this cluster at another place",
            expected=f"{running.host}:{running.port}",
            found=f"{wanted.host}:{wanted.port}",
            todo="use that host and port, or stop it with `serve shutdown`",
        )
    if wanted.certificate not in (None, running.certificate):
        raise ConfigError(
            "Ray Serve runs already on this cluster without this certificate",
            expected="the certificate and key with which it was started"
            if running.certificate
            else "plain HTTP",
            found="HTTPS with another certificate" if running.certificate else "HTTPS",
            todo="stop it with `serve shutdown`, then deploy anew: it takes a certificate only when it starts",
        )


def serve_place() -> Place | None:
    """Where the Serve of this cluster listens, or is about to; None if no Serve runs."""
    import ray
    from ray.serve.context import _get_global_client

    try:
        with quiet():
            client = _get_global_client(raise_if_no_controller_running=False)
    except ray.exceptions.RayError:  # it is on its way out
        return None
    return place_of(dict(client.http_config)) if client else None


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

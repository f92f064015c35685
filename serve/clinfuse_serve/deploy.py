"""Start and stop the service on a running Ray: used by `clinfuse serve`, the demo and the tests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse_serve.config import APP, ServiceArgs, config_for, with_certificate, with_model
from clinfuse_serve.examples import open_examples
from clinfuse_serve.proxy import free_port, place_of, quiet, serve_place, shut_down_serve, start_proxy
from clinfuse_serve.security import check_token, require_token_beyond_loopback, token_digest
from clinfuse_serve.served_model import read_model
from clinfuse_serve.study import read_study

START_S = 300.0
LOOK_S = 0.1
ANSWER_S = 30.0
FAILED = ("DEPLOY_FAILED", "DELETING")


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
        with quiet():
            serve.delete(APP)
            if self.own:
                shut_down_serve()

    def roll(self, model_dir: str | Path) -> None:
        """Have another model version loaded beside the one that is served; it takes over when all members have it.

        Raises:
            ClinfuseError: a replica cannot use it; the version that is served goes on answering.
        """
        config = with_model(self.config, absolute(model_dir))
        deploy(config)
        self.config = config

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
        InputError: no finished dataset to take examples or a study's cases from.
        ConfigError: no token beyond loopback, a port in use, more members than the model has.
        ModelFolderError: the folder holds no usable model.
        ClinfuseError: Ray is not running, or the deployment failed.
    """
    require_token_beyond_loopback(host, token)
    check_stored(options.get("examples"), options.get("study"))
    args = ServiceArgs(
        members=checked_members(model_dir, members),
        token_digest=token_digest(check_token(token)) if token is not None else None,
        **options,
    )
    port = free_port(host) if port == 0 else port
    config = config_for(absolute(model_dir), args, host, port)
    return deploy(with_certificate(config, certificate) if certificate else config)


def deploy(config: dict[str, Any]) -> ServeHandle:
    """Deploy a config on the running Ray and return once the service answers.

    Deployed again with another model in `user_config`, the new version rolls in while the old one answers. If that
    fails, what was deployed before is put back; only a service that is new is taken away again.

    Raises:
        ConfigError: a port in use, or Serve runs already at another place or without the config's certificate.
        ClinfuseError: Ray is not running, or the deployment failed.
    """
    import ray

    if not ray.is_initialized():
        raise ClinfuseError("Ray is not running; start it first (the command `clinfuse serve` does)")
    place = place_of(config["http_options"])
    own = start_proxy(place)
    with quiet():
        before = _standing()
        _apply(config)
        try:
            _wait_until_running()
            if before:
                _need_taken()
        except ClinfuseError:
            _undo(before, own)
            raise
    return ServeHandle((serve_place() or place).url, own, config)


def _apply(config: dict[str, Any]) -> None:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema(**config))


def _standing() -> dict[str, Any] | None:
    """What Serve was told to deploy, if the service stands already."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    state = serve.status().applications.get(APP)
    if state is None or state.status == "DELETING":
        return None
    client: Any = _get_global_client()
    told = ray.get(client._controller.get_app_configs.remote())
    return {"applications": [app.model_dump(exclude_unset=True) for app in told.values()]}


def _undo(before: dict[str, Any] | None, own: bool) -> None:
    from ray import serve

    if before:
        _apply(before)
        return
    serve.delete(APP)
    if own:
        shut_down_serve()


def absolute(place: str | Path) -> str:
    """A URL as it is, a path from the root: replicas work in other folders than the one it was typed in."""
    return str(place) if "://" in str(place) else str(Path(place).resolve())


def _wait_until_running() -> None:
    """Wait for all replicas; Serve restarts those that die meanwhile (UNHEALTHY), so these are waited for, too."""
    from ray import serve

    deadline = time.monotonic() + START_S
    while (state := serve.status().applications.get(APP)) is None or state.status != "RUNNING":
        if (state is not None and state.status in FAILED) or time.monotonic() > deadline:
            raise ClinfuseError(
                f"the service did not start: {_reason(state) if state else 'Serve did not take it'}"
            )
        time.sleep(LOOK_S)


def _reason(state: Any) -> str:
    """The last lines of what the failed deployments say, or else of what the application says."""
    failed = [row.message for row in state.deployments.values() if row.status in FAILED and row.message]
    return "; ".join(sorted({_last_line(message) for message in failed or [state.message]}))


def _need_taken() -> None:
    """Ask every replica of a service that stood before whether it has the version that it was told to take."""
    from ray import serve

    reasons: set[str] = set()
    for name in serve.status().applications[APP].deployments:
        reasons |= _refusals(serve.get_deployment_handle(name, APP))
    if reasons:
        raise ClinfuseError(
            f"the new model version is not taken, the old one stays: {'; '.join(sorted(reasons))}"
        )


def _refusals(deployment: Any) -> set[str]:
    import ray
    from ray.serve.exceptions import RayServeException

    try:
        return set(deployment.broadcast("refusal").results(timeout_s=ANSWER_S)) - {""}
    except (TimeoutError, ray.exceptions.RayError, RayServeException) as error:
        return {f"a replica did not answer ({type(error).__name__})"}


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


def check_stored(examples: str | None, study: str | None) -> None:
    """Read what the service takes from storage, so that what cannot be used fails before anything is started.

    Raises:
        InputError: no finished dataset. ConfigError: not a study file.
    """
    cases = read_study(study).cases if study is not None else None
    for store in (examples, cases):
        open_examples(store)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"

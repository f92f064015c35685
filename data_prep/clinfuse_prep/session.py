"""One Ray session per command: connect to the cluster asked for, or start a small local one."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clinfuse.errors import InputError

MIB = 2**20
OBJECT_STORE_BYTES = 200 * MIB
KNOCK_SECONDS = 10.0
LEAST_CPUS = 4  # logical: two training workers at one CPU each, their controller, and one more

# Read by Ray when it starts, so they are set before; a value the user has set stays.
LOCAL_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: spinning ones cost ten times the work on shared cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle workers cost about 70 MiB each
    "RAY_num_workers_soft_limit": "1",
    "RAY_DEDUP_LOGS": "1",
}
# One machine is not taken away in parts: no actor that watches for that, no exporter without a dashboard.
SINGLE_NODE_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
# Makes Ray bind a local session to 127.0.0.1 instead of the machine's outer address (the default on macOS and
# Windows, hence the name). Ray reads it when it is imported.
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# A local session has no dashboard. Ray's processes look for one for 12 s at the end of every training, unless they are
# told an address; nothing listens at the discard port, so they know at once.
NO_DASHBOARD = ("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
# Read by Ray Train in the driver: how often reports are gathered (default 2 s makes every report wait 1 s).
TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
_HERE: list[bool] = []  # holds an entry while a session that was started here is open


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """A Ray session for the time of one command.

    An open session is used and left open. Else `address`, else RAY_ADDRESS names a cluster to connect to
    ("auto": the one started on this machine); without either a local one is started without dashboard or open
    ports beyond loopback, and stopped at the end.

    Args:
        address: HOST:PORT of a running cluster, or "auto".
        cpus: logical CPUs of a local session; default the machine's, at least 4.

    Raises:
        InputError: no cluster answers at the address.
    """
    target = address or os.environ.get("RAY_ADDRESS")
    prepare_environment(local=not target)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if target:
            _connect(target)
        else:
            _start(cpus)
            _HERE.append(True)
        yield
    finally:
        _HERE.clear()
        ray.shutdown()


def ray_ready() -> bool:
    """Whether a session is open in this process; Ray is never imported for the question."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def can_grow() -> bool:
    """Whether the open session may get more nodes: a cluster that was connected to may, one started here not."""
    return not _HERE


def prepare_environment(*, local: bool) -> None:
    """Set Ray's switches for this process and those it starts, unless the user has set them."""
    if local and "ray" not in sys.modules:
        os.environ.setdefault(LOOPBACK_SWITCH, "0")
    settings = LOCAL_SETTINGS | TRAIN_SETTINGS | (SINGLE_NODE_SETTINGS if local else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _connect(address: str) -> None:
    import ray

    try:
        knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            "no Ray cluster answers at the address",
            expected="HOST:PORT of a running cluster, or auto",
            found=f"{address!r} ({str(error).splitlines()[0]})",
            todo="start it (ray up cluster.yaml, or ray start --head), or leave the address out",
        ) from error


def knock(address: str) -> None:
    """Open and close a connection to HOST:PORT, since Ray itself waits a minute for nobody; "auto" is left to Ray.

    Raises:
        ConnectionError: nobody listens there. ValueError: not of the form HOST:PORT.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("not of the form HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nobody listens there: {error}") from error


def _start(cpus: int | None) -> None:
    name, nowhere = NO_DASHBOARD
    before = os.environ.get(name)
    os.environ[name] = nowhere  # for the processes that Ray starts, not for this one
    try:
        _init(cpus)
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _init(cpus: int | None) -> None:
    import ray

    ray.init(
        address="local",  # never join a cluster that happens to run here
        num_cpus=cpus or max(LEAST_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config={
            "num_workers_soft_limit": 1
        },  # idle workers hold 0.3 GB each: keep one, not one per core
    )


def gpus_present() -> int:
    """GPUs that the open session can hand out."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))

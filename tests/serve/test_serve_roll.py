"""Model versions rolling on real Ray Serve: no failed request, none mixed, and the old one stays if the new is bad."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificate import made_certificate
from clinfuse_serve.client import Client
from clinfuse_serve.config import with_certificate
from clinfuse_serve.deploy import ServeHandle, deploy, start
from clinfuse_serve.proxy import serve_place
from clinfuse_serve.served_model import read_model
from posting import Pair, masks_of
from replicas import fuse, processes, until_whole

from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse.presets import Preset

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),
]
Seen = list[tuple[float, str, bool, int]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, without Serve."""
    from clinfuse_prep.session import session

    with session():
        yield


@pytest.fixture(scope="module")
def service(cluster: None, model_dir: Path) -> Iterator[ServeHandle]:
    """Three members, two aggregators."""
    with start(model_dir, port=0) as handle:
        yield handle


@pytest.fixture
def client(service: ServeHandle) -> Iterator[Client]:
    """A patient client."""
    with Client(service.url, retries=20) as made:
        yield made


@contextmanager
def asking(service: ServeHandle, pair: Pair, preset: str = "balanced") -> Iterator[Seen]:
    """Two impatient clients all the while; begin, version, degraded and members of every reply. A refusal is raised."""
    seen: Seen = []
    stop = threading.Event()

    def ask() -> None:
        images = pair["anatomy"], pair["companion"]
        with Client(service.url, retries=0) as impatient:
            while not stop.is_set():
                begun = time.monotonic()
                facts = impatient.describe(*images, masks=masks_of(pair), preset=preset, seed=len(seen))
                seen.append((begun, str(facts.info["model_hash"]), facts.degraded, facts.members_used))

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(ask) for _ in range(2)]
        try:
            more(seen)
            yield seen
            more(seen)
        finally:
            stop.set()
        for task in tasks:
            task.result()


def more(seen: Seen) -> None:
    """Wait for four more replies."""
    wanted, deadline = len(seen) + 4, time.monotonic() + 120
    while len(seen) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)


def until_served(client: Client, folder: Path) -> None:
    """Wait until no aggregator serves another version."""
    wanted, deadline = read_model(folder).model_hash, time.monotonic() + 240
    while {client.models()[0].model_hash for _ in range(12)} != {wanted}:
        assert time.monotonic() < deadline, "the version did not take over"
        time.sleep(0.2)


def damaged(folder: Path, copy: Path) -> Path:
    """A copy whose facts can be read, but not the weights of its last member."""
    shutil.copytree(folder, copy)
    *_, weights = sorted(copy.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    return copy


def test_what_does_not_start_leaves_nothing_behind(cluster: None, model_dir: Path) -> None:
    with pytest.raises(ClinfuseError, match=r"did not start: .*limit queue"):
        start(model_dir, 1, port=0, limits={"queue": 0})
    assert serve_place() is None


def test_https_is_not_promised_where_serve_runs_without(
    service: ServeHandle, client: Client, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"without this certificate; expected plain HTTP.*to do: stop it"):
        deploy(with_certificate(service.config, made_certificate(tmp_path)))
    assert client.url.startswith("http:") and client.health().members_up == 3


def test_a_version_that_cannot_be_used_is_refused_and_the_old_one_answers(
    service: ServeHandle,
    client: Client,
    nifti_pair: Pair,
    model_dir: Path,
    other_model_dir: Path,
    tmp_path: Path,
) -> None:
    old = read_model(model_dir).model_hash
    with asking(service, nifti_pair) as seen:
        with pytest.raises(ClinfuseError, match="the old one stays"):
            service.roll(damaged(other_model_dir, tmp_path / "damaged"))
        with pytest.raises(ClinfuseError, match=r"the old one stays.*no model here"):
            service.roll(tmp_path / "nowhere")
    assert {row[1:] for row in seen} == {(old, False, 3)}
    os.kill(processes("Member0")[0].pid, signal.SIGKILL)
    until_whole(client, nifti_pair)
    assert fuse(client, nifti_pair).info["model_hash"] == old, "what starts anew takes the old one, too"


def test_a_member_that_dies_meanwhile_takes_no_service_down(
    service: ServeHandle, client: Client, nifti_pair: Pair, other_model_dir: Path
) -> None:
    os.kill(processes("Member1")[0].pid, signal.SIGKILL)
    service.roll(other_model_dir)
    until_served(client, other_model_dir)
    until_whole(client, nifti_pair)


def test_new_versions_roll_in_one_upon_another_without_a_failed_request(
    service: ServeHandle, client: Client, nifti_pair: Pair, model_dir: Path, third_model_dir: Path
) -> None:
    """Every reply is whole and of one version, though the last one comes before the one before it has taken over."""
    client.put_preset(Preset(name="kept", beta=6.0))
    first = fuse(client, nifti_pair).info["model_hash"]
    order = [first, *(read_model(folder).model_hash for folder in (model_dir, third_model_dir))]
    with asking(service, nifti_pair, "kept") as seen:
        service.roll(model_dir)
        service.roll(third_model_dir)
        until_served(client, third_model_dir)
    assert {row[2:] for row in seen} == {(False, 3)}
    turns = [order.index(row[1]) for row in sorted(seen)]
    assert turns[0] == 0 and turns[-1] == 2 and len(set(order)) == 3
    os.kill(processes("Member2")[0].pid, signal.SIGKILL)
    until_whole(client, nifti_pair, preset="kept")
    assert fuse(client, nifti_pair).info["model_hash"] == order[-1]


def test_a_config_that_fails_is_taken_back(service: ServeHandle, client: Client, nifti_pair: Pair) -> None:
    """Whether the whole cannot be built or a replica cannot use what it names; the reason is told."""
    for args, reason in (
        ({"limits": {"queue": 0}}, "limit queue"),
        ({"examples": "/nowhere.zarr"}, "no dataset at this path; .*clinfuse prep"),
    ):
        config = copy.deepcopy(service.config)
        config["applications"][0]["args"] |= args
        with pytest.raises(ClinfuseError, match=rf"did not start: .*{reason}"):
            deploy(config)
    until_whole(client, nifti_pair)

"""The service on real Ray Serve: equal to the pipeline, degraded when a member dies, hot presets, full queues."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from certificate import made_certificate
from clinfuse_serve.client import Client, ServiceError
from clinfuse_serve.config import with_certificate
from clinfuse_serve.deploy import ServeHandle, deploy, start
from posting import Pair
from replicas import fuse, processes, until_whole

from clinfuse.errors import ClinfuseError, ConfigError
from clinfuse.presets import Preset

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),
]
TOKEN = "a-token-of-20-letters"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 that vouches for itself, and of its key."""
    return made_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, without Serve."""
    from clinfuse_prep.session import session

    with session():
        yield


@pytest.fixture(scope="module")
def service(cluster: None, model_dir: Path, certificate: tuple[str, str]) -> Iterator[ServeHandle]:
    """HTTPS, three members, two aggregators, a token, a queue of two per aggregator, bodies of 4 MiB at most."""
    limits = {"queue": 2, "body_bytes": 4 << 20}
    options: dict[str, Any] = {"token": TOKEN, "certificate": certificate, "limits": limits, "batch": 4}
    with start(model_dir, port=0, **options) as handle:
        yield handle


@pytest.fixture
def client(service: ServeHandle, certificate: tuple[str, str]) -> Iterator[Client]:
    """A patient client with the token."""
    with Client(service.url, TOKEN, retries=20, verify=certificate[0]) as made:
        yield made


@pytest.fixture
def impatient(service: ServeHandle, certificate: tuple[str, str]) -> Iterator[Client]:
    """A client that asks only once."""
    with Client(service.url, TOKEN, retries=0, verify=certificate[0]) as made:
        yield made


@pytest.fixture
def bare(service: ServeHandle, certificate: tuple[str, str]) -> Iterator[httpx.Client]:
    """HTTP by hand, without the token."""
    trusted = ssl.create_default_context(cafile=certificate[0])
    with httpx.Client(base_url=service.url, verify=trusted, timeout=120, trust_env=False) as made:
        yield made


def test_start_refuses_before_anything_runs(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="open to the network"):
        start(model_dir, host="0.0.0.0")
    with pytest.raises(ClinfuseError, match="Ray is not running"):
        start(model_dir)


def test_while_the_address_is_not_known_a_token_is_asked(cluster: None) -> None:
    from clinfuse_serve.config import application

    with pytest.raises(ConfigError, match="without a token"):
        application({"members": 1})


def test_served_equals_the_pipeline(
    client: Client, nifti_pair: Pair, model_dir: Path, tmp_path: Path
) -> None:
    from clinfuse_prep.geometry import to_source_grid
    from clinfuse_prep.prepare import prepare_pair

    from clinfuse.pipeline import FusionPipeline

    options: dict[str, Any] = {"preset": "skull_base", "seed": 11, "samples": 2, "jitters": 1}
    reply = fuse(client, nifti_pair, **options)
    assert (reply.members_used, reply.members_asked, reply.degraded) == (3, 3, False)
    pair = dict(nifti_pair)
    case = prepare_pair(pair.pop("anatomy"), pair.pop("companion"), **pair)
    result = FusionPipeline.from_pretrained(model_dir)(case, **options)
    paths = reply.save(tmp_path)
    for key in ("fused", "uncertainty"):
        image = nib.load(paths[reply.info["Files"][key]])
        expected, affine = to_source_grid(getattr(result, key), case)
        np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=1e-5)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    written = {key: unit for key, unit in result.info["units"].items() if unit}
    assert reply.info["units"].items() >= written.items()
    told, expected = ([{**f, "case": ""} for f in i["findings"]] for i in (reply.info, result.info))
    assert told == expected
    for key in set(result.info) - {"case_id", "units", "findings"}:
        assert reply.info[key] == json.loads(json.dumps(result.info[key])), key


def test_the_proxy_passes_refusals_on(bare: httpx.Client, nifti_pair: Pair) -> None:
    assert bare.get("/v1/presets").status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    big = bare.post("/v1/fuse", files={"anatomy": bytes(6 << 20)}, headers=headers)
    assert big.status_code == 413 and big.headers["content-type"] == "application/problem+json"
    wrong = bare.post("/v1/fuse", data={"params": "{"}, headers=headers)
    assert wrong.status_code == 422 and wrong.json()["expected"]


def test_https_is_for_those_who_trust_the_certificate(service: ServeHandle, bare: httpx.Client) -> None:
    assert service.url.startswith("https://") and bare.get("/healthz").json()["members_up"] == 3
    with (
        Client(service.url, TOKEN, retries=0) as stranger,
        pytest.raises(ServiceError, match="nobody answers"),
    ):
        stranger.health()
    with pytest.raises(httpx.TransportError):
        httpx.get(service.url.replace("https", "http") + "/healthz", trust_env=False)
    with pytest.raises(ConfigError, match="certificate cannot be read"):
        Client(service.url, TOKEN, verify="nowhere.pem")


def test_a_running_service_keeps_its_certificate(
    service: ServeHandle, certificate: tuple[str, str], bare: httpx.Client, tmp_path: Path
) -> None:
    """Deployed again, what answers is what is told; another certificate is refused instead of left out."""
    options = {key: value for key, value in service.config["http_options"].items() if "ssl" not in key}
    assert deploy({**service.config, "http_options": options}).url == service.url
    assert deploy(service.config).url == service.url
    with pytest.raises(ConfigError, match="without this certificate"):
        deploy(with_certificate(service.config, made_certificate(tmp_path)))
    assert bare.get("/healthz").json()["members_up"] == 3


def test_a_full_queue_answers_429_and_the_client_waits(
    bare: httpx.Client, client: Client, nifti_pair: Pair
) -> None:
    statuses: list[int] = []
    headers = {"Authorization": f"Bearer {TOKEN}"}
    files = {role: path.read_bytes() for role, path in nifti_pair.items()}

    def rude() -> None:
        form = {"params": json.dumps({"samples": 8, "output": "json"})}
        reply = bare.post("/v1/fuse", data=form, files=files, headers=headers)
        statuses.append(reply.status_code)

    threads = [threading.Thread(target=rude) for _ in range(10)]
    for thread in threads:
        thread.start()
    polite = fuse(client, nifti_pair, seed=5)
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429} and polite.members_used == 3


def test_a_kept_case_is_known_to_every_aggregator(impatient: Client, nifti_pair: Pair) -> None:
    """The images go to one of two aggregators; asked by its token, the other takes the case over from there."""
    masks = {roi: nifti_pair[roi] for roi in ("brain", "bone")}  # as no other test sends: a new token
    sent = impatient.fuse(nifti_pair["anatomy"], nifti_pair["companion"], masks=masks, seed=9)
    for turn in range(8):
        again = impatient.fuse(case=sent.case, preset=("balanced", "stroke")[turn % 2], seed=9)
        assert again.members_used == 3
        same = again.files[again.info["Files"]["fused"]] == sent.files[sent.info["Files"]["fused"]]
        assert same is (turn % 2 == 0)


def test_presets_change_on_every_replica(client: Client, nifti_pair: Pair) -> None:
    client.put_preset(Preset(name="ours", description="A test.", beta=7.0))
    for _ in range(8):
        assert next(row for row in client.presets() if row.name == "ours").model_dump()["beta"] == 7.0
    assert fuse(client, nifti_pair, preset="ours").info["weights"]["beta"] == 7.0


def test_metrics_add_up_over_replicas(client: Client, nifti_pair: Pair) -> None:
    def done() -> float:
        rows = [line for line in client.metrics().splitlines() if line.startswith("clinfuse_seconds_count")]
        return float(next(line for line in rows if '"fuse"' in line).rsplit(" ", 1)[1])

    fuse(client, nifti_pair)
    before = done()
    for seed in range(4):
        fuse(client, nifti_pair, seed=seed)
    assert done() == before + 4


def test_a_dead_member_degrades_the_reply_and_comes_back(client: Client, nifti_pair: Pair) -> None:
    whole = fuse(client, nifti_pair, seed=2)
    victim = processes("Member1")
    assert len(victim) == 1
    os.kill(victim[0].pid, signal.SIGKILL)
    reply = fuse(client, nifti_pair, seed=2)
    assert reply.degraded and reply.members_used == 2 and reply.info["members"] == [0, 2]
    assert reply.info["degraded"] is True
    until_whole(client, nifti_pair, seed=2)
    again = fuse(client, nifti_pair, seed=2)
    name = whole.info["Files"]["fused"]
    assert again.members_used == 3 and again.files[name] == whole.files[name]


def test_a_dead_aggregator_loses_no_request_and_its_successor_knows_the_presets(
    client: Client, nifti_pair: Pair
) -> None:
    client.put_preset(Preset(name="kept", beta=6.0))
    os.kill(processes("Aggregator")[0].pid, signal.SIGKILL)
    for seed in range(6):
        assert fuse(client, nifti_pair, seed=seed, preset="kept").members_used == 3
    deadline = time.monotonic() + 120
    while len(processes("Aggregator")) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    for _ in range(8):
        assert "kept" in {row.name for row in client.presets()}


def test_a_closed_connection_ends_the_work(bare: httpx.Client, client: Client, nifti_pair: Pair) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    files = {role: path.read_bytes() for role, path in nifti_pair.items()}
    form = {"params": json.dumps({"steps": 20, "samples": 7, "jitters": 2, "output": "json"})}
    impatience = httpx.Timeout(60, read=0.4)
    with pytest.raises(httpx.ReadTimeout):
        bare.post("/v1/fuse", data=form, files=files, headers=headers, timeout=impatience)
    deadline = time.monotonic() + 60
    while re.search(r"^clinfuse_cancelled_total [1-9]", client.metrics(), re.MULTILINE) is None:
        assert time.monotonic() < deadline, "the request was not cancelled"
        time.sleep(0.5)


def test_slices_of_several_clients_at_once_are_as_alone(client: Client, nifti_pair: Pair) -> None:
    token = fuse(client, nifti_pair).case
    pair = {"masks": {r: nifti_pair[r] for r in ("brain", "bone", "lesion")}}
    images = (nifti_pair["anatomy"], nifti_pair["companion"])
    wanted = [{"seed": seed, "slab": (seed, seed + 1)} for seed in range(6)]
    alone = [client.describe(*images, **pair, **params) for params in wanted]
    assert alone[0].case == token
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda params: client.describe(*images, **pair, **params), wanted))
    for one, other in zip(alone, together, strict=True):
        assert one.maps["fused"].mean == pytest.approx(other.maps["fused"].mean, abs=1e-6)

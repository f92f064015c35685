"""What the service refuses over real HTTP, and how: bad input, limits, tokens, foreign hosts, full queue, deadlines."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import nibabel as nib
import numpy as np
import pytest
from clinfuse_serve.client import Client, ServiceError
from clinfuse_serve.examples import SimulatedExamples
from clinfuse_serve.limits import Limits
from clinfuse_serve.security import token_digest
from posting import Pair, Start, post, refused

from clinfuse.case import Case
from clinfuse.outputs import nifti_bytes

TOKEN = "a-token-of-20-letters"


def test_bad_input_is_refused_with_reasons(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    ct, mr = nifti_pair["companion"], nifti_pair["anatomy"]
    refused(post(url, {"anatomy": mr}), 422, "companion image is missing")
    refused(post(url, {}), 422, "anatomy and the companion image is missing")
    refused(post(url, {"anatomy": mr, "companion": b"GIF89a"}), 422, "not of a kind")
    refused(post(url, {"anatomy": mr, "companion": ct.read_bytes()[:500]}), 422, "companion")
    refused(post(url, nifti_pair, {"preset": "nonsense"}), 422, "no such preset", "balanced")
    refused(post(url, nifti_pair, {"weights": {"beta": 99}}), 422, "weights.beta")
    refused(post(url, nifti_pair, {"members": 9}), 422, "at most 3")
    refused(post(url, nifti_pair, {"samples": 16, "jitters": 16}), 422, "too many samples")
    refused(post(url, nifti_pair, "{"), 422, "params")
    refused(post(url, nifti_pair, {"image": "interval"}), 422, "no interval map")
    refused(post(url, {}, {"example": "x"}), 422, "no such example")
    refused(post(url, {}, {"example": "../../etc"}), 422, "no such example")
    refused(httpx.get(f"{url}/nowhere", trust_env=False), 404)
    refused(httpx.get(f"{url}/v1/fuse", trust_env=False), 405)
    broken = nib.load(mr)
    data = broken.get_fdata(dtype=np.float32)
    data[3, 3, 3] = np.nan
    refused(post(url, {**nifti_pair, "anatomy": nifti_bytes(data, broken.affine)}), 422, "non-finite")


def test_a_header_that_claims_60000_cubed_costs_nothing(local_service: Start, nifti_pair: Pair) -> None:
    header = bytearray(nifti_bytes(np.zeros((2, 2, 2), np.float32), np.eye(4)))
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    refused(post(local_service(), {**nifti_pair, "anatomy": bytes(header)}), 422, "too large", "30000")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_stopped(local_service: Start, chunked: bool) -> None:
    url = local_service(Limits(body_bytes=100_000))
    body = (bytes(10_000) for _ in range(200)) if chunked else bytes(2_000_000)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="anatomy"; filename="x"\r\n\r\n'
    content = (piece for part in ([head], body) for piece in part) if chunked else head + body
    try:
        reply = httpx.post(f"{url}/v1/fuse", content=content, headers=kind, trust_env=False)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return
    assert reply.status_code == 413 and reply.json()["expected"] == "at most 100000 bytes"


def test_malformed_multipart_is_a_problem(local_service: Start) -> None:
    url = local_service()
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for content in (
        b"",
        b"--x\r\n\r\nnonsense",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    ):
        reply = httpx.post(f"{url}/v1/fuse", content=content, headers=kind, trust_env=False)
        assert refused(reply, 422)["found"]


def test_token_is_asked_of_all_but_page_and_health(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service(digest=token_digest(TOKEN))
    for path in ("/", "/healthz"):
        assert httpx.get(url + path, trust_env=False).status_code == 200
    for path in ("/v1/presets", "/v1/models", "/v1/examples", "/metrics", "/openapi.json", "/info/"):
        reply = httpx.get(url + path, trust_env=False)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    refused(post(url, nifti_pair), 401, "token")
    with Client(url, TOKEN) as client:
        assert client.models()[0].members == 3
    with Client(url, TOKEN + "x") as client, pytest.raises(ServiceError, match="HTTP 401"):
        client.models()


def test_other_sites_pages_and_other_hosts_names_are_refused(local_service: Start) -> None:
    url = local_service()
    refused(httpx.get(f"{url}/v1/presets", headers={"Origin": "http://evil.example"}, trust_env=False), 403)
    refused(httpx.get(f"{url}/v1/presets", headers={"Host": "evil.example"}, trust_env=False), 403)
    own = httpx.get(f"{url}/v1/presets", headers={"Origin": url}, trust_env=False)
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert own.headers["x-content-type-options"] == "nosniff"


def test_a_full_queue_answers_429_with_a_time(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service(Limits(queue=1, at_once=1))
    statuses: list[int] = []

    def one() -> None:
        reply = post(url, nifti_pair, {"samples": 4, "output": "json"})
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1 and reply.json()["title"] == "the queue is full"
        statuses.append(reply.status_code)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429} and len(statuses) == 5


def test_deadline_leaves_out_latecomers(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    token = post(url, nifti_pair, {"output": "json"}).headers["x-clinfuse-case"]
    reply = post(url, {}, {"case": token, "steps": 120, "deadline_s": 0.1})
    problem = refused(reply, 503, "no ensemble member answered")
    assert [row["member"] for row in problem["missing"]] == [0, 1, 2] and reply.headers["retry-after"]


class SlowCase(SimulatedExamples):
    """Its cases take three seconds to prepare."""

    def case(self, name: str) -> Case:
        time.sleep(3)
        raise AssertionError("nobody waits for it")


@pytest.mark.parametrize(
    ("deadlines", "found"), [((1.0,), "still being prepared"), ((4.0, 0.5), "still waiting in the queue")]
)
def test_deadline_covers_preparation_and_queue(
    local_service: Start, deadlines: tuple[float, ...], found: str
) -> None:
    """The last of the requests is answered in time, though one before it has the only place."""
    url = local_service(Limits(at_once=1), examples=SlowCase())
    *before, own = deadlines
    with ThreadPoolExecutor(1) as pool:
        for other in before:
            pool.submit(post, url, {}, {"example": "x", "deadline_s": other})
            until_waiting(url)
        begun = time.monotonic()
        reply = post(url, {}, {"example": "x", "deadline_s": own})
        assert time.monotonic() - begun < 2.5
    problem = refused(reply, 503, "before the deadline", f"within {own:g} s", found)
    assert [row["member"] for row in problem["missing"]] == [0, 1, 2] and reply.headers["retry-after"]


class SlowlyMade(SimulatedExamples):
    """One case that takes two seconds to prepare."""

    def __init__(self, made: Case) -> None:
        super().__init__()
        self.made, self.times = made, 0

    def case(self, name: str) -> Case:
        time.sleep(2)
        self.times += 1
        return self.made


def test_what_a_deadline_left_is_ended_in_its_place_and_kept(local_service: Start, tiny_case: Case) -> None:
    slow = SlowlyMade(tiny_case)
    url = local_service(Limits(at_once=1), examples=slow)
    asked = {"example": "x", "output": "json"}
    refused(post(url, {}, {**asked, "deadline_s": 0.3}), 503, "still being prepared")
    refused(post(url, {}, {**asked, "deadline_s": 0.3}), 503, "still waiting in the queue")
    assert slow.times == 0 and post(url, {}, asked).status_code == 200
    assert slow.times == 1, "made once, though nobody waited for it any more"


def until_waiting(url: str) -> None:
    """Until a request is at work."""
    while "clinfuse_in_flight 1" not in httpx.get(f"{url}/metrics", trust_env=False).text:
        time.sleep(0.02)


@pytest.mark.parametrize(("path", "first"), [("/v1/fuse", "anatomy"), ("/infer/clinfuse", "file")])
def test_a_gone_client_ends_the_work(local_service: Start, nifti_pair: Pair, path: str, first: str) -> None:
    url, files = local_service(), {role: path.read_bytes() for role, path in nifti_pair.items()}
    files[first] = files.pop("anatomy")
    with pytest.raises(httpx.ReadTimeout):
        form = {"data": {"params": json.dumps({"steps": 20, "samples": 7, "jitters": 2})}}
        httpx.post(f"{url}{path}", files=files, timeout=1, trust_env=False, **form)
    for _ in range(150):
        if "clinfuse_cancelled_total 1" in httpx.get(f"{url}/metrics", trust_env=False).text:
            return
        time.sleep(0.2)
    raise AssertionError("the request was not cancelled")

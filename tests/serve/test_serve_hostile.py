"""Damaged and hostile uploads: always a clear refusal or an image, never a 500, never much memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import psutil
import pytest
from posting import Pair, Start, post, refused

from clinfuse.outputs import nifti_bytes

QUICK = {"output": "json", "steps": 1, "members": 1}


def plain(pair: Pair) -> dict[str, bytes]:
    """The pair's files, uncompressed."""
    return {role: gzip.decompress(path.read_bytes()) for role, path in pair.items()}


@contextmanager
def highest_rss() -> Iterator[list[int]]:
    """The most memory of this process, service included, in bytes: looked at all the while, whole after the block."""
    process, peak, stop = psutil.Process(), [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield peak
    finally:
        stop.set()
        watch.join()


def test_damaged_headers_are_refused_or_read(local_service: Start, nifti_pair: Pair) -> None:
    url, files, rng = local_service(), plain(nifti_pair), np.random.default_rng(5)
    seen = set()
    for turn in range(60):
        role = ("anatomy", "companion", "brain")[turn % 3]
        data = bytearray(files[role])
        for place in rng.integers(0, 352, size=rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        reply = post(url, {**files, role: bytes(data)}, QUICK)
        seen.add(reply.status_code)
        assert reply.status_code in (200, 422), reply.text
    assert 422 in seen


def test_torn_files_are_refused(local_service: Start, nifti_pair: Pair) -> None:
    url, files = local_service(), {role: path.read_bytes() for role, path in nifti_pair.items()}
    for share in (0.0, 0.01, 0.3, 0.9):
        part = files["anatomy"][: int(share * len(files["anatomy"]))]
        reply = post(url, {**files, "anatomy": part}, QUICK)
        assert reply.status_code == 422 and reply.json()["found"], reply.text


def test_a_gzip_bomb_is_not_unpacked(local_service: Start, nifti_pair: Pair) -> None:
    url, files = local_service(), {role: path.read_bytes() for role, path in nifti_pair.items()}
    files["anatomy"] = gzip.compress(gzip.decompress(files["anatomy"]) + bytes(400 << 20), 1)
    assert len(files["anatomy"]) < 4 << 20
    before = psutil.Process().memory_info().rss
    with highest_rss() as peak:
        assert post(url, files, QUICK).status_code in (200, 422)
    assert peak[0] - before < 200 << 20


DEEP, LONG = "[" * 100_000, '{"seed": ' + "1" * 5000 + "}"


@pytest.mark.parametrize("path", ["/v1/fuse", "/infer/clinfuse"])
def test_params_too_deep_or_too_long_are_refused(local_service: Start, nifti_pair: Pair, path: str) -> None:
    url, files = local_service(), plain(nifti_pair)
    for text in (DEEP, LONG, '{"preset": "\\ud800"}'):
        form = {"data": {"params": text}, "files": files}
        reply = httpx.post(f"{url}{path}", timeout=60, trust_env=False, **form)
        assert refused(reply, 422, "params cannot be used")["found"]


def test_bodies_that_cannot_be_read_are_problems(local_service: Start, nifti_pair: Pair) -> None:
    """As every refusal: 422 with what was expected, found, and to do."""
    url = local_service()

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, url + path, timeout=60, trust_env=False, **options)

    bare, json_kind = {"Content-Type": "multipart/form-data"}, {"Content-Type": "application/json"}
    big = {"data": {"params": "x" * (2 << 20)}, "files": {"anatomy": b"x"}}
    rate = "/v1/study/readers/r1/0"
    for found, reply in {
        "boundary": send("POST", "/v1/fuse", content=b"abc", headers=bare),
        "maximum size of 1024KB": send("POST", "/v1/fuse", **big),
        "not UTF-8": send("PUT", "/v1/presets/x", content=b"\xff\xfe{"),
        "too many digits": send("PUT", "/v1/presets/x", content=LONG),
        "nested too deep": send("PUT", "/v1/presets/x", content="[" * 200_000, headers=json_kind),
        "text that is not UTF-8": send("POST", rate, content=b"\xff\xfe{", headers=json_kind),
    }.items():
        problem = refused(reply, 422, "body cannot be read", found)
        assert problem["expected"] and problem["todo"]


def test_file_names_are_only_words(local_service: Start, nifti_pair: Pair) -> None:
    url, files = local_service(), plain(nifti_pair)
    named = {role: (f"../../../tmp/{role}<script>.nii", data) for role, data in files.items()}
    reply = post(url, named, QUICK)
    assert reply.status_code == 200 and "script" not in reply.text and "/tmp" not in reply.text


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_no_image_has(local_service: Start, nifti_pair: Pair) -> None:
    url, files = local_service(), plain(nifti_pair)
    source = nib.load(nifti_pair["anatomy"])
    for value in (0.0, 3e38, -3e38):
        constant = nifti_bytes(np.full(source.shape, value, np.float32), source.affine)
        reply = post(url, {**files, "anatomy": constant}, QUICK)
        assert reply.status_code == 422, reply.text
    huge = np.random.default_rng(0).random(source.shape).astype(np.float32) * 3e38
    reply = post(url, {**files, "companion": nifti_bytes(huge, source.affine)}, QUICK)
    assert reply.status_code in (200, 422), reply.text

"""`clinfuse serve` as typed: files named relative to where it was typed, answers until it is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from clinfuse_prep.store import CaseStore
from clinfuse_serve.client import Client
from clinfuse_serve.proxy import free_port

from clinfuse.case import Case

pytestmark = pytest.mark.ray
STUDY = "title: t\nresults: answers\nquestions: [q]\narms: [{name: a}, {name: b, method: mean}]\n"


def test_examples_and_study_of_the_folder_it_was_typed_in(
    model_dir: Path, tiny_case: Case, tmp_path: Path
) -> None:
    store = CaseStore(tmp_path / "head.zarr")
    store.write(tiny_case)
    store.commit_manifest([store.row("tiny")])
    (tmp_path / "study.yaml").write_text(STUDY)
    port = free_port("127.0.0.1")
    words = ["serve", str(model_dir), "--members", "1", "--aggregators", "1", "--port", str(port)]
    words += ["--examples", "head.zarr", "--study", "study.yaml"]
    code = "import sys; from clinfuse_platform.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                until_up(client.url, service)
                assert [row.id for row in client.examples()] == ["tiny"]
                assert client.describe(example="tiny").members_used == 1
                study = httpx.get(f"{client.url}/v1/study", trust_env=False, timeout=60).json()
                assert study["items"] == 2, "a study without cases takes the service's examples"
            assert (tmp_path / "answers").is_dir(), "beside the study file"
        finally:
            service.send_signal(signal.SIGTERM)
            ended = service.wait(120)
    assert ended == 0, (tmp_path / "log").read_text()


def until_up(url: str, service: subprocess.Popen[bytes]) -> None:
    """Wait until it answers, as long as it runs."""
    deadline = time.monotonic() + 240
    while service.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("the service did not come up")

"""Training with data and runs on an S3-compatible server, stopped on the way and gone on with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from clinfuse_platform.curves import FOLDER
from clinfuse_platform.launch import Workers, launch
from clinfuse_platform.provenance import data_hash
from clinfuse_platform.runs import create_run, find_model
from clinfuse_platform.verb_table import run_verb
from clinfuse_prep.session import session
from upath import UPath

from clinfuse.pipeline import FusionPipeline
from clinfuse.training import recipe

pytestmark = pytest.mark.ray
pytest.importorskip("moto", reason="needs moto[server]")
SETTINGS = {"crop": [24, 24], "lesion_steps": 6, "denoiser_steps": 30, "validations": 1}


@pytest.fixture(scope="module")
def bucket(tiny_store: Path) -> Iterator[str]:
    """A bucket on a server of our own, with the tiny dataset in it; Ray started where it is known."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    os.environ.update(known)
    try:
        wait_for(port, server)
        files = UPath("s3://clinfuse/").fs
        files.mkdir("clinfuse")
        files.put(str(tiny_store), "clinfuse/tiny.zarr", recursive=True)
        with session(cpus=4):
            yield "s3://clinfuse"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="module")
def far(bucket: str) -> Namespace:
    """A run there that was stopped on its way and gone on with: its rows at the stop, and the verb's result."""
    data, storage = f"{bucket}/tiny.zarr", f"{bucket}/runs"
    config = recipe("cpu-debug", **SETTINGS).to_dict()
    settings = {"config": config, "data": data, "data_hash": data_hash(data)}
    run = create_run("far", storage, {"verb": "train", **settings})
    launch("train", "model", run, {**settings, "until": {"denoiser": 12}}, Workers(count=1, cpus=1))
    before = run.metrics()
    assert before.groupby("phase")["step"].max().to_dict() == {"denoiser": 12, "lesion_head": 6}
    words = [data, "--run", "far", "--storage", storage, "--workers", "1", "--cpus-per-worker", "1"]
    for name, value in SETTINGS.items():
        words += ["--set", f"{name}={value}"]
    result = run_verb("train", [*words, "--recipe", "cpu-debug"])
    return Namespace(run=run, storage=storage, data=data, before=before, result=result)


def test_a_run_on_s3_goes_on_where_it_stopped(far: Namespace) -> None:
    run, storage, before, after = far.run, far.storage, far.before, far.run.metrics()
    assert after["elapsed"].tolist()[: len(before)] == before["elapsed"].tolist(), "it began anew"
    assert after.groupby("phase")["step"].max().to_dict() == {"denoiser": 30, "lesion_head": 6}
    assert after["val_brain_ssim"].notna().sum() == 1
    assert str(far.result["result"]) == f"{storage}/far/model"
    found = FusionPipeline.from_pretrained(find_model("far", storage))
    assert found.model_hash == far.result["model_hash"]
    (experiment,) = run.path.glob("checkpoints-train-*")
    assert 1 <= len([path for path in experiment.iterdir() if path.name.startswith("checkpoint_2")]) <= 2
    assert list((run.path / FOLDER / "train" / "denoiser").iterdir()), "no curves"
    assert run_verb("runs", ["list", "--storage", storage])["runs"][0]["state"] == "finished"


def test_an_ensemble_on_s3_is_calibrated_there(far: Namespace) -> None:
    storage = far.storage
    words = [
        "far",
        "--storage",
        storage,
        "--members",
        "2",
        "--cpus-per-worker",
        "1",
        "--set",
        "member_steps=4",
    ]
    assert str(run_verb("ensemble", words)["result"]) == f"{storage}/far/ensemble"
    assert len(FusionPipeline.from_pretrained(find_model("far/members/1", storage)).members) == 1
    quick = ["--looks", "1", "--steps", "4"]
    done = run_verb("calibrate", ["far/ensemble", "--storage", storage, "--data", far.data, *quick])
    assert str(done["result"]) == f"{storage}/far/ensemble"
    whole = FusionPipeline.from_pretrained(find_model("far/ensemble", storage))
    assert len(whole.members) == 2 and whole.calibration is not None
    (shown,) = run_verb("runs", ["show", "far", "--storage", storage])["runs"]
    assert shown["lineage"]["models"]["ensemble"]["calibrated"] is not None

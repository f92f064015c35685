"""Fixtures of the serving tests: a tiny three-member student, an oblique pair stored L-A-S, a service without Ray."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import nibabel as nib
import numpy as np
import pytest
import torch
from clinfuse_serve.backend import LocalBackend
from clinfuse_serve.limits import Limits
from clinfuse_serve.proxy import free_port
from clinfuse_serve.study import Study
from PIL import Image

from clinfuse.case import Case
from clinfuse.presets import load_presets

if TYPE_CHECKING:
    from chromium import Browser
    from posting import Pair, Start

    from clinfuse.pipeline import FusionPipeline

sys.path.append(str(Path(__file__).parent))  # helpers of these tests, e.g. chromium.py


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: three student members with random weights and a lesion head, of the smallest recipe."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `model_dir`, other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=2)


@pytest.fixture(scope="session")
def third_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `model_dir`, yet other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "third", seed=3)


def make_model(folder: Path, seed: int) -> Path:
    """Save three students with random weights."""
    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import build_denoiser, build_lesion_head, recipe

    torch.set_num_threads(1)
    config = recipe("cpu-debug")
    generator = torch.Generator().manual_seed(seed)
    members = [build_denoiser(config, member) for member in range(3)]
    with torch.no_grad():
        for weights in (w for member in members for w in member.parameters()):
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.08)
    pipeline = FusionPipeline(
        members=members,
        lesion_head=build_lesion_head(config),
        diffusion=config.diffusion,
        kind="student",
        student_steps=2,
        presets=load_presets(),
        metadata={"recipe": "cpu-debug", "untrained": True},
    )
    return pipeline.save_pretrained(folder)


@pytest.fixture
def nifti_pair(tiny_case: Case, tmp_path: Path) -> Pair:
    """The tiny case as NIfTI files stored L-A-S (x flipped) with an oblique affine: MR in a.u., CT in HU."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = tiny_case.shape[2] - 1
    affine = tiny_case.affine @ flip

    def write(name: str, volume: np.ndarray) -> Path:
        path = tmp_path / f"Smith^John_{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0)[::-1], affine), path)
        return path

    return {
        "anatomy": write("mr", (tiny_case.anatomy * 800).astype(np.float32)),
        "companion": write("ct", (tiny_case.companion * 2500 - 1000).astype(np.int16)),
        "brain": write("brain", tiny_case.brain),
        "bone": write("bone", tiny_case.bone),
        "lesion": write("lesion", tiny_case.lesion),
    }


@pytest.fixture
def png_pair(tmp_path: Path) -> Pair:
    """One axial slice of a drawn head, 96 rows × 80 columns, MR and CT greys, asymmetric in both directions."""
    rows, columns = np.mgrid[:96, :80]
    radius = np.hypot((rows - 48) / 42, (columns - 40) / 34)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 6, radius.shape)
    brain = radius < 0.8
    mr = np.where(brain, 120 + 40 * np.sin(columns / 5.0) + noise, 10) + 60 * ((radius > 0.9) & (radius < 1))
    mr = mr + 90 * ((np.hypot(rows - 30, columns - 55) < 7) & brain)
    ct = np.where((radius > 0.82) & (radius < 0.92), 250, np.where(brain, 60 + noise, 4))
    paths = {}
    for name, image in {"anatomy": mr, "companion": ct, "brain": 255 * brain}.items():
        paths[name] = tmp_path / f"{name}_001.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[name])
    return paths


@pytest.fixture(scope="session")
def pipeline(model_dir: Path) -> FusionPipeline:
    """The tiny model, loaded once."""
    from clinfuse.pipeline import FusionPipeline

    return FusionPipeline.from_pretrained(model_dir)


@pytest.fixture
def local_service(model_dir: Path, pipeline: FusionPipeline) -> Iterator[Start]:
    """Starts services over real HTTP with the members in this process; yields a function that returns the URL."""
    import uvicorn
    from clinfuse_serve.application import build_application
    from clinfuse_serve.served_model import read_model
    from clinfuse_serve.service import FusionService

    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        limits: Limits | None = None,
        digest: str | None = None,
        study: Study | None = None,
        backend: type[LocalBackend] = LocalBackend,
        **service_options: object,
    ) -> str:
        port, ready = free_port("127.0.0.1"), threading.Event()

        def run() -> None:
            async def serve() -> None:
                members = backend(pipeline, limits)
                service = FusionService(
                    read_model(model_dir), members, limits or Limits(), secret=b"k", **service_options
                )
                app = build_application(service, digest=digest, loopback_only=digest is None, study=study)
                server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
                servers.append((server, threading.current_thread()))
                ready.set()
                await server.serve()

            asyncio.run(serve())

        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(60)
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                return url
            except httpx.ConnectError:
                time.sleep(0.05)
        raise AssertionError("the service did not come up")

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser, or skip."""
    from chromium import Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here")
    made = Browser(program, tmp_path / "profile")
    yield made
    made.close()

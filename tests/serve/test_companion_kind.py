"""What the companion is said to be: over HTTP as on the command line, and never mixed up with what was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from clinfuse_serve.client import Client
from clinfuse_serve.deploy import start
from clinfuse_serve.fuse import FuseJob, fuse_here, fuse_there, released_model
from PIL import Image
from posting import Pair, Start, masks_of, post, refused

from clinfuse.errors import ConfigError


@pytest.fixture
def real_pair(data_root: Path) -> Pair:
    """The middle slice of a patient of the atlas: MRI, and SPECT in pseudo-colour."""
    found = sorted((data_root / "aanlib" / "MRI-SPECT" / "case_10" / "MRI").glob("*.png"))
    if not found:
        pytest.skip("no real slices here")
    mri = found[len(found) // 2]
    return {"anatomy": mri, "companion": mri.parent.parent / "SPECT" / mri.name}


def facts(url: str, pair: Pair, kind: str | None, **params: Any) -> dict[str, Any]:
    """The reply of `output=json`, whose companion is said to be of that kind."""
    said = {} if kind is None else {"companion_kind": kind}
    reply = post(url, pair, {"output": "json", "members": 1, "steps": 1, **said, **params})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.real
def test_every_kind_is_a_case_of_its_own(local_service: Start, real_pair: Pair) -> None:
    url = local_service()
    kinds = {"NM": None, "SPECT": "spect", "PET": "pet", "CT": "ct"}
    told = {name: facts(url, real_pair, kind) for name, kind in kinds.items()}
    assert {name: row["info"]["modalities"] for name, row in told.items()} == {k: ["MR", k] for k in kinds}
    assert len({row["case"] for row in told.values()}) == len(kinds), "one token a kind"
    for name, row in told.items():
        again = facts(url, real_pair, kinds[name])
        assert again["case"] == row["case"] and again["maps"] == row["maps"], "and the same one again"
        kept = facts(url, {}, None, case=row["case"])
        assert kept["info"]["modalities"] == ["MR", name] and kept["maps"] == row["maps"]
    means = {name: row["maps"]["fused"]["mean"] for name, row in told.items()}
    assert means["SPECT"] == means["PET"] == means["NM"] != means["CT"], "uptake, and bone of a CT"


def test_a_kept_case_is_of_its_kind(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    pet = facts(url, nifti_pair, "pet")
    assert facts(url, {}, "pet", case=pet["case"])["case"] == pet["case"]
    refused(
        post(url, {}, {"case": pet["case"], "companion_kind": "ct"}),
        422,
        "another kind",
        "found",
        "PET",
        "again",
    )
    example = {"example": "simulated-stroke", "slab": [40, 41]}
    refused(post(url, {}, {**example, "companion_kind": "spect"}), 422, "another kind of companion", "CT")
    assert facts(url, {}, "ct", **example)["info"]["modalities"] == ["MR", "CT"]


def test_a_kind_that_there_is_not_is_refused(local_service: Start, nifti_pair: Pair) -> None:
    url = local_service()
    for wrong in ("mri", "CT", "", 3):
        refused(
            post(url, nifti_pair, {"companion_kind": wrong}), 422, "companion_kind", "'ct', 'spect' or 'pet'"
        )
    with Client(url) as client, pytest.raises(ConfigError, match="'ct', 'spect' or 'pet'"):
        client.describe(nifti_pair["anatomy"], nifti_pair["companion"], companion_kind="mri")
    kinds = httpx.get(f"{url}/openapi.json", trust_env=False).json()["components"]["schemas"]["FuseParams"]
    assert kinds["properties"]["companion_kind"]["anyOf"][0]["enum"] == ["ct", "spect", "pet"]


def test_by_monai_labels_shape_too(local_service: Start, nifti_pair: Pair) -> None:
    files = {role: path.read_bytes() for role, path in masks_of(nifti_pair).items()}
    files |= {"file": nifti_pair["anatomy"].read_bytes(), "label": nifti_pair["companion"].read_bytes()}
    form = {"data": {"params": '{"companion_kind": "pet"}'}, "files": files}
    reply = httpx.post(
        f"{local_service()}/infer/clinfuse?output=json", trust_env=False, timeout=60, **form
    ).json()
    assert reply["clinfuse"]["info"]["modalities"] == ["MR", "PET"]


@pytest.mark.ray
@pytest.mark.real
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
def test_here_and_by_the_released_models_service_alike(
    ray_session: None, real_pair: Pair, tmp_path: Path
) -> None:
    """What is said of a SPECT, of a PET and of one that is said to be a CT, and the images themselves."""
    told = {}
    with start(released_model(), port=0, aggregators=1) as service:
        for kind in ("spect", "pet", "ct"):
            done = []
            for place in ("here", "there"):
                job = FuseJob(
                    anatomy=real_pair["anatomy"],
                    companion=real_pair["companion"],
                    out=tmp_path / kind / place,
                    companion_kind=kind,
                )
                done.append(fuse_here(job) if place == "here" else fuse_there(job, service.url))
            here, there = done
            assert here["files"].keys() == there["files"].keys()
            sidecars = [json.loads(Path(one["files"]["sidecar"]).read_text()) for one in done]
            for fact in ("modalities", "units", "mask_provenance", "scaling"):
                assert sidecars[0][fact] == sidecars[1][fact], fact
            problems = [[row["problem"] for row in sidecar["findings"]] for sidecar in sidecars]
            assert problems[0] == problems[1]
            for name in ("fused", "colour"):
                pictures = [np.asarray(Image.open(one["files"][name])).astype(int) for one in done]
                assert np.abs(pictures[0] - pictures[1]).max() <= 1 and pictures[0].std() > 10
            told[kind] = (sidecars[1], problems[1])
    for kind in ("spect", "pet"):
        sidecar, _ = told[kind]
        assert sidecar["modalities"] == ["MR", kind.upper()] and sidecar["units"]["uncertainty"] == (
            "uncalibrated std/(std + 0.05): calibration was fitted on CT, not on "
            + kind.upper()
            + "; stored as 0 to 65535"
        )
        assert "interval" not in sidecar["Files"]
    sidecar, problems = told["ct"]
    assert sidecar["units"]["uncertainty"].startswith("calibrated") and "interval" in sidecar["Files"]
    assert "the companion image does not look like a CT" in problems

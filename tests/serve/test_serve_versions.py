"""Model versions on a member: the newest two, and older ones as long as somebody may ask for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from clinfuse_serve.backend import LocalBackend
from clinfuse_serve.limits import Limits
from clinfuse_serve.problems import ProblemError
from clinfuse_serve.schemas import FuseParams
from clinfuse_serve.served_model import read_model
from clinfuse_serve.service import FusionService
from clinfuse_serve.versions import LoadedVersions, WrongVersionError

from clinfuse.case import Case
from clinfuse.pipeline import FusionPipeline


def test_a_version_goes_when_nobody_asks_for_it_any_more(
    model_dir: Path, other_model_dir: Path, third_model_dir: Path
) -> None:
    versions = LoadedVersions("cpu")
    first, second = (versions.load(str(folder)) for folder in (model_dir, other_model_dir))
    versions.forget(set())
    assert versions.hashes() == [first, second] and not versions.crowded
    third = versions.load(str(third_model_dir))
    assert versions.crowded
    versions.forget({first, second})
    assert versions.hashes() == [first, second, third], "all in use"
    versions.forget({first})
    assert versions.hashes() == [first, third], "aggregators still ask for the first"
    assert versions.get(first).model_hash == first and versions.get("").model_hash == third
    with pytest.raises(WrongVersionError):
        versions.get(second)
    assert versions.load(str(model_dir)) == first and versions.hashes() == [third, first]


def test_versions_are_loaded_at_the_service_s_precision(model_dir: Path, other_model_dir: Path) -> None:
    versions = LoadedVersions("cpu", "bfloat16")
    for folder in (model_dir, other_model_dir):
        assert versions.get(versions.load(str(folder))).precision == "bfloat16"


def test_the_version_of_a_request_under_way_is_in_use(
    model_dir: Path, other_model_dir: Path, pipeline: FusionPipeline, tiny_case: Case
) -> None:
    first, second = read_model(model_dir), read_model(other_model_dir)
    seen: list[set[str]] = []

    class Watched(LocalBackend):
        async def hold(self, case: Case) -> Case:
            service.use(second)
            seen.append(service.versions_in_use())
            return await super().hold(case)

    service = FusionService(first, Watched(pipeline), Limits(), secret=b"k")
    answer = asyncio.run(service.fuse_case(FuseParams(), "case1", lambda: tiny_case))
    assert answer.result.info["model_hash"] == first.model_hash
    assert seen == [{first.model_hash, second.model_hash}]
    assert service.versions_in_use() == {second.model_hash}
    with pytest.raises(ProblemError):
        FusionService(None, Watched(pipeline), Limits(), secret=b"k").versions_in_use()

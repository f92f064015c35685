"""Presets that change while the service runs: replicas agree, whatever the order of news."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from clinfuse_serve.backend import LocalBackend
from clinfuse_serve.limits import Limits
from clinfuse_serve.preset_table import PresetTable
from clinfuse_serve.problems import ProblemError
from clinfuse_serve.served_model import read_model
from clinfuse_serve.service import FusionService
from hypothesis import given, settings
from hypothesis import strategies as st

from clinfuse.errors import ConfigError
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import Preset, load_presets

CHANGES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("pqr"), st.integers(1, 9)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.randoms())
def test_replicas_agree_on_presets_whatever_the_order_of_news(changes, random) -> None:  # type: ignore[no-untyped-def]
    tables = [PresetTable(load_presets(), str(k)) for k in range(3)]
    news = [tables[k].change(Preset(name=name, beta=float(beta))) for k, name, beta in changes]
    for table in tables:
        mine = list(news)
        random.shuffle(mine)
        for change in mine:
            table.merge(json.loads(json.dumps(change)))
    assert tables[0].presets() == tables[1].presets() == tables[2].presets()
    late = PresetTable(load_presets(), "late")
    late.merge(tables[0].changes())
    assert late.presets() == tables[0].presets()


def test_preset_names_are_plain_words() -> None:
    table = PresetTable(load_presets(), "0")
    for name in ("", "A", "a b", "../x", "a" * 65):
        with pytest.raises(ConfigError, match="name"):
            table.change(Preset(name=name))


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
def test_a_member_keeps_the_newest_whatever_comes_late() -> None:
    from clinfuse_serve.members import Member, Settings

    plain = Settings(
        app="x", members=1, threads=1, limits=Limits(), secret=b"k", digest=None, loopback_only=True
    )
    table = PresetTable({}, "0")
    older, newer = (table.change(Preset(name="ours", beta=beta)) for beta in (1.0, 2.0))

    async def known() -> dict[str, Any]:
        member = Member(plain, 0)
        for changes in (newer, older):
            await member.remember_presets(changes)
        return await member.known_presets()

    assert asyncio.run(known()) == newer


class Deaf(LocalBackend):
    """Others know of a changed preset, but at first nobody answers."""

    told: tuple[dict[str, Any], ...] = ()

    async def learn_presets(self) -> list[Any]:
        return list(self.told)


def test_what_others_know_is_asked_until_somebody_answers(model_dir: Path, pipeline: FusionPipeline) -> None:
    backend = Deaf(pipeline)
    service = FusionService(read_model(model_dir), backend, Limits(), secret=b"k", replica="late")
    other = PresetTable({}, "other")
    for beta in (5.0, 6.0):
        other.change(Preset(name="ours", beta=beta))

    async def names() -> set[str]:
        return {row.name for row in await service.preset_rows()}

    async def talk() -> None:
        assert "ours" not in await names()
        with pytest.raises(ProblemError, match="no ensemble member answered"):
            await service.change_preset(Preset(name="ours", beta=7.0))
        backend.told = ({}, other.changes())
        assert "ours" in await names()
        await service.change_preset(Preset(name="ours", beta=7.0))
        other.merge(service.presets.changes())
        assert other.find("ours").beta == 7.0, "later than all that was known"

    asyncio.run(talk())

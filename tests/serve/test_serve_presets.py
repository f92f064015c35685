"""Presets that change while the service runs: replicas agree, whatever the order of news."""

from __future__ import annotations

import json

import pytest
from clinfuse_serve.preset_table import PresetTable
from hypothesis import given, settings
from hypothesis import strategies as st

from clinfuse.errors import ConfigError
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

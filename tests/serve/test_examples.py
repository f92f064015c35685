"""Cases offered for trying out: those of a prepared store, its test cases first, read as they were written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.store import CaseStore
from clinfuse_serve.client import Client, ServiceError
from clinfuse_serve.examples import MAX_EXAMPLES, SIMULATED, SimulatedExamples, StoreExamples, open_examples
from posting import Start

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError


def stored(folder: Path, case: Case, **splits: str) -> str:
    """A store with the case under several names: name → split."""
    store = CaseStore(folder)
    for name, split in splits.items():
        attrs = {**case.attrs, "split": split, "simulated": split == "test"}
        store.write(replace(case, case_id=name, attrs=attrs))
    return str(folder)


def test_test_cases_are_offered_or_all_if_there_are_none(tiny_case: Case, tmp_path: Path) -> None:
    mixed = open_examples(stored(tmp_path / "a.zarr", tiny_case, one="train", two="test", three="test"))
    assert mixed.names() == ["three", "two"]
    assert [(row.id, row.simulated) for row in mixed.rows()] == [("three", True), ("two", True)]
    plain = open_examples(stored(tmp_path / "b.zarr", tiny_case, one="train", two="val"))
    assert plain.names() == ["one", "two"] and not any(row.simulated for row in plain.rows())
    np.testing.assert_array_equal(plain.case("two").anatomy, tiny_case.anatomy)
    many = stored(tmp_path / "c.zarr", tiny_case, **{f"case{k:02d}": "test" for k in range(MAX_EXAMPLES + 2)})
    assert len(open_examples(many).names()) == MAX_EXAMPLES + 2
    assert len(open_examples(many).rows()) == MAX_EXAMPLES


def test_names_that_are_none_are_refused(tiny_case: Case, tmp_path: Path) -> None:
    examples = StoreExamples(stored(tmp_path / "a.zarr", tiny_case, one="test", two="train"))
    for name in ("two", "none", "../cases/one", "", "one/../one"):
        with pytest.raises(InputError, match="no such example"):
            examples.case(name)
    with pytest.raises(ConfigError, match="no prepared store"):
        open_examples(str(tmp_path / "nowhere.zarr"))
    simulated = open_examples(None)
    assert isinstance(simulated, SimulatedExamples) and simulated.names() == list(SIMULATED)


def test_a_services_own_store_is_offered_and_fused(
    local_service: Start, tiny_case: Case, tmp_path: Path
) -> None:
    store = stored(tmp_path / "a.zarr", tiny_case, head1="test")
    with Client(local_service(examples=StoreExamples(store))) as client:
        assert [row.id for row in client.examples()] == ["head1"]
        assert client.describe(example="head1", members=1).shape == tiny_case.shape
        with pytest.raises(ServiceError, match="no such example; expected one of head1"):
            client.describe(example="head2")

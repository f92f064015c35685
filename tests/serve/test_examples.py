"""Cases offered for trying out: those of a prepared store, its test cases first, read as they were written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinfuse_prep.store import CaseStore
from clinfuse_serve.client import Client, ServiceError
from clinfuse_serve.deploy import absolute, start
from clinfuse_serve.examples import MAX_EXAMPLES, SIMULATED, SimulatedExamples, StoreExamples, open_examples
from posting import Start

from clinfuse.case import Case
from clinfuse.errors import InputError

STUDY = "title: t\nresults: r\nquestions: [q]\narms: [{name: a}, {name: b, method: mean}]\n"


def stored(folder: Path, case: Case, **splits: str) -> str:
    """A store with the case under several names: name → split."""
    store = CaseStore(folder)
    for name, split in splits.items():
        attrs = {**case.attrs, "split": split, "simulated": split == "test"}
        store.write(replace(case, case_id=name, attrs=attrs))
    store.commit_manifest(store.row(name) for name in store.case_ids())
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
    simulated = open_examples(None)
    assert isinstance(simulated, SimulatedExamples) and simulated.names() == list(SIMULATED)


def test_a_store_that_is_none_or_not_finished_is_refused(
    model_dir: Path, tiny_case: Case, tmp_path: Path
) -> None:
    """By name, and before anything is started; of a study's cases, too."""
    half = stored(tmp_path / "half.zarr", tiny_case, one="test")
    CaseStore(half).withdraw_manifest()
    study = tmp_path / "study.yaml"
    for store, problem in (
        (half, r"no manifest; expected manifest.parquet; found.*prep again with --resume"),
        (str(tmp_path), r"no dataset at this path; .*found a folder of another kind"),
        (str(tmp_path / "nowhere.zarr"), r"no dataset at this path; .*found nothing.*clinfuse prep"),
    ):
        study.write_text(f"{STUDY}cases: {store}\n")
        with pytest.raises(InputError, match=problem):
            open_examples(store)
        for options in ({"examples": store}, {"study": str(study)}):
            with pytest.raises(InputError, match=problem):
                start(model_dir, port=0, **options)


def test_a_services_own_store_is_offered_and_fused(
    local_service: Start, tiny_case: Case, tmp_path: Path
) -> None:
    store = stored(tmp_path / "a.zarr", tiny_case, head1="test")
    with Client(local_service(examples=StoreExamples(store))) as client:
        assert [row.id for row in client.examples()] == ["head1"]
        assert client.describe(example="head1", members=1).shape == tiny_case.shape
        with pytest.raises(ServiceError, match="no such example; expected one of head1"):
            client.describe(example="head2")


def test_a_store_may_lie_behind_a_url(
    tmp_path: Path, tiny_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "a.zarr", tiny_case, one="test")
    monkeypatch.chdir(tmp_path)
    for place in ("a.zarr", f"file://{tmp_path}/a.zarr"):
        assert open_examples(absolute(place)).names() == ["one"]

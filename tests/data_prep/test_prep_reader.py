"""The reader: reproducible batches, sharded by worker, reshuffled per round, centred where it matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clinfuse_prep.reader import ShardReader
from clinfuse_prep.sampling import Shares, centres
from clinfuse_prep.store import CaseStore

from clinfuse.case import Case
from clinfuse.errors import ConfigError, InputError


@pytest.fixture
def dataset(tiny_case: Case, tmp_path: Path) -> Path:
    store = CaseStore(tmp_path / "d.zarr")
    for number in range(4):
        value = np.float32(0.1 * (number + 1))
        anatomy = np.where(tiny_case.brain > 0, value, 0).astype(np.float32)
        store.write(replace(tiny_case, case_id=f"c{number}", anatomy=anatomy))
    return tmp_path / "d.zarr"


@pytest.mark.parametrize("crop", [(16, 12), (40, 40)])
def test_2d_batches(dataset: Path, crop: tuple[int, int]) -> None:
    reader = ShardReader(dataset, split="train", crop=crop, batch_size=3)
    batch = reader(5)
    shapes = dict.fromkeys(("anatomy", "companion", "aligned", "brain", "bone", "lesion"), (3, 1, *crop))
    assert {name: tensor.shape for name, tensor in batch.items()} == {**shapes, "spacing": (3, 2), "ct": (3,)}
    assert {tensor.dtype for tensor in batch.values()} == {torch.float32}
    assert torch.allclose(batch["spacing"], torch.tensor([1.5, 2.0]))
    assert torch.equal(batch["aligned"], batch["companion"])


def test_each_crop_says_whether_its_companion_is_a_ct(dataset: Path, tiny_case: Case) -> None:
    CaseStore(dataset).write(replace(tiny_case, case_id="pet", modalities=("MR", "PET")))
    reader = ShardReader(dataset, split="train", crop=(16, 16), batch_size=10)
    assert reader(0)["ct"].tolist() == [float(case_id != "pet") for case_id in reader.cases_at(0)]
    assert 0 < reader(0)["ct"].sum() < 10


def test_3d_batches(dataset: Path) -> None:
    batch = ShardReader(dataset, split="train", crop=(8, 16, 16), batch_size=2, spatial_dims=3)(0)
    assert batch["lesion"].shape == (2, 1, 8, 16, 16)
    assert torch.allclose(batch["spacing"], torch.tensor([3.0, 1.5, 2.0]))


def test_a_step_is_the_same_in_every_process_and_other_steps_differ(dataset: Path) -> None:
    one, two = (ShardReader(dataset, split="train", crop=(16, 16), batch_size=4, seed=3) for _ in range(2))
    assert all(torch.equal(one(7)[key], two(7)[key]) for key in one(7))
    assert not torch.equal(one(7)["companion"], one(8)["companion"])
    other = ShardReader(dataset, split="train", crop=(16, 16), batch_size=4, seed=4)
    assert not torch.equal(one(7)["companion"], other(7)["companion"])


def test_files_instead_of_memory_give_the_same_batches(dataset: Path) -> None:
    memory = ShardReader(dataset, split="train", crop=(16, 16), batch_size=4)
    mapped = ShardReader(dataset, split="train", crop=(16, 16), batch_size=4, cache=False)
    assert all(torch.equal(memory(1)[key], mapped(1)[key]) for key in memory(1))
    mapped.close()


def test_workers_share_out_the_cases(dataset: Path) -> None:
    readers = [
        ShardReader(dataset, split="train", crop=(16, 16), batch_size=4, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert sorted(readers[0].case_ids + readers[1].case_ids) == [f"c{n}" for n in range(4)]
    many = ShardReader(dataset, split="train", crop=(16, 16), batch_size=4, rank=6, world_size=8)
    assert len(many.case_ids) == 1


def test_each_round_shows_every_case_once_in_a_new_order(dataset: Path) -> None:
    reader = ShardReader(
        dataset,
        split="train",
        crop=(32, 28),
        batch_size=4,
        shares=Shares(lesion=1, bone_edge=0, brain=0, head=0),
    )
    orders = [
        tuple(round(float(x), 2) for x in reader(step)["anatomy"].amax(dim=(1, 2, 3))) for step in range(8)
    ]
    assert all(sorted(order) == [0.1, 0.2, 0.3, 0.4] for order in orders)
    assert len(set(orders)) > 1


def test_crops_are_centred_by_their_shares(dataset: Path, tiny_case: Case) -> None:
    only = Shares(lesion=1, bone_edge=0, brain=0, head=0)
    reader = ShardReader(dataset, split="train", crop=(16, 12), batch_size=8, shares=only)
    assert all(bool(reader(step)["lesion"].amax(dim=(1, 2, 3)).min() == 1) for step in range(5))
    anywhere = ShardReader(dataset, split="train", crop=(16, 12), batch_size=8)
    for name, wanted in reader(3).items():
        assert bool((anywhere(3, shares=only)[name] == wanted).all())
    assert set(centres(tiny_case)) == {"lesion", "bone_edge", "brain", "head"}
    healthy = replace(tiny_case, lesion=tiny_case.lesion * 0)
    assert "lesion" not in centres(healthy)


def test_impossible_requests(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        ShardReader(dataset, split="train", crop=(16, 16), batch_size=2, spatial_dims=3)
    with pytest.raises(InputError, match="no val cases"):
        ShardReader(dataset, split="val", crop=(16, 16), batch_size=2)

"""Checkpoint content, history, worker counts, student targets: all that training needs short of Ray itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from clinfuse_platform.launch import TrainingError, Workers, noted_failure, settings_key
from clinfuse_platform.phases import Work
from clinfuse_platform.plans import train_plan
from clinfuse_platform.position import SNAPSHOT, Position, Stretches, load_weights, remove_orphans, rescue
from clinfuse_platform.runs import create_run
from clinfuse_platform.targets import Targets
from clinfuse_platform.validation import with_verdicts
from clinfuse_platform.worker import note_failure
from clinfuse_prep.manifest import manifest_row
from clinfuse_prep.reader import ShardReader
from clinfuse_prep.store import CaseStore
from torch import nn
from upath import UPath

from clinfuse.errors import ConfigError, InputError
from clinfuse.pipeline import FusionPipeline
from clinfuse.training import TrainState, build_denoiser, build_lesion_head, recipe


def test_a_checkpoint_gives_back_position_weights_and_optimiser() -> None:
    done, current = nn.Linear(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(current.parameters(), lr=0.1)
    current(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    position = Position(done=["head"], phase="denoiser", step=7, history=[{"phase": "head", "step": 3}])
    folder = position.save({"head": done}, TrainState(7, current, optimizer))
    assert Position.load(folder) == position
    again = nn.Linear(3, 2)
    load_weights(again, folder, "head")
    assert torch.equal(again.weight, done.weight)
    other = nn.Linear(2, 2)
    state = TrainState(0, other, torch.optim.AdamW(other.parameters(), lr=0.1))
    state.load(folder / "current")
    assert state.step == 7 and torch.equal(other.weight, current.weight)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_a_torn_list_of_checkpoints_is_replaced_by_the_newest_whole_one(tmp_path: Path) -> None:
    for name in ("checkpoint_2026-01", "checkpoint_2026-02", "checkpoint_2026-03"):
        shutil.move(Position(done=["head"]).save({"head": nn.Linear(3, 2)}, None), tmp_path / name)
    torn = tmp_path / "checkpoint_2026-03" / "head.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    assert rescue(tmp_path) is None, "nothing was torn"
    snapshot = tmp_path / SNAPSHOT
    snapshot.write_text('{"checkpoint_results": []}')
    assert rescue(tmp_path) is None and snapshot.exists(), "the list is sound"
    snapshot.write_text('{"checkpoint_results": [')
    assert rescue(tmp_path) == tmp_path / "checkpoint_2026-02"
    assert not snapshot.exists()
    snapshot.touch()
    (tmp_path / "checkpoint_2026-02" / "position.json").unlink()
    (tmp_path / "checkpoint_2026-01" / "files.json").unlink()
    assert rescue(tmp_path) is None


def test_a_checkpoint_tells_the_phase_to_judge_with_its_average(tmp_path: Path) -> None:
    done, current = nn.Linear(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(current.parameters(), lr=0.1)
    state = TrainState(7, current, optimizer)
    state.start_average()
    start = current.weight.detach().clone()
    with torch.no_grad():
        current.weight.add_(1)
    state.move_average(0.75)
    history = [{"phase": "head", "step": 3}, {"phase": "head", "step": 5}]
    between = Position(done=["head"], history=history)
    phase, step, weights = between.under_way(between.save({"head": done}, None))
    assert (phase, step) == ("head", 5) and torch.equal(weights["weight"], done.weight)
    under_way = Position(done=["head"], phase="denoiser", step=7, history=history)
    phase, step, weights = under_way.under_way(under_way.save({"head": done}, state))
    assert (phase, step) == ("denoiser", 7)
    torch.testing.assert_close(weights["weight"], start + 0.25)


def test_verdicts_join_the_rows_of_their_steps(tmp_path: Path) -> None:
    rows = [{"phase": "head", "step": 2}, {"phase": "denoiser", "step": 4}, {"phase": "denoiser", "step": 8}]
    assert with_verdicts(rows, UPath(tmp_path / "none")) == rows
    for step in (5, 9):
        note = {"phase": "denoiser", "step": step, "val_score": float(step)}
        (tmp_path / f"{step}.json").write_text(json.dumps(note))
    joined = with_verdicts(rows, UPath(tmp_path))
    assert joined == [*rows[:2], {**rows[2], "val_score": 5.0}]


def test_history_keeps_every_step_of_a_short_phase_and_means_of_a_long_one() -> None:
    short = Stretches("p", 3)
    rows = [short.add({"step": s, "loss": float(s)}, last=s == 3) for s in (1, 2, 3)]
    assert [row["loss"] for row in rows if row] == [1.0, 2.0, 3.0]
    long = Stretches("p", 1001)
    made = [long.add({"step": s, "loss": float(s)}, last=s == 1001) for s in range(1, 1002)]
    kept = [row for row in made if row]
    assert len(kept) <= 500 and kept[0] == {"phase": "p", "step": 3, "loss": 2.0}
    assert kept[-1]["step"] == 1001


def test_only_unregistered_checkpoints_are_removed(tmp_path: Path) -> None:
    assert remove_orphans(UPath(tmp_path)) == 0
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps({"latest": "checkpoint_2"}))
    assert remove_orphans(UPath(tmp_path)) == 2
    assert [path.name for path in tmp_path.glob("checkpoint_?")] == ["checkpoint_2"]


def test_numbers_of_workers() -> None:
    assert Workers.parse("2", 0, 0).count == 2
    elastic = Workers.parse("1:4", 1, 3)
    assert elastic.count == (1, 4) and elastic.most == 4 and elastic.cpus_each == 3
    for wrong in ("0", "x", "4:1", "1:2:3", ""):
        with pytest.raises(ConfigError, match="FEWEST:MOST"):
            Workers.parse(wrong, 0, 0)


def test_a_job_is_known_by_its_settings() -> None:
    assert settings_key({"a": 1, "b": (2,)}) == settings_key({"b": [2], "a": 1})
    assert settings_key({"a": 1}) != settings_key({"a": 2})


def test_errors_come_back_from_the_workers_in_their_own_words(tmp_path: Path) -> None:
    run = create_run("r", tmp_path, {"verb": "train"})
    assert noted_failure(run, "train") is None
    note_failure(
        run.path, "train", InputError("the split is empty", expected="cases", found="none", todo="prep")
    )
    error = noted_failure(run, "train")
    assert isinstance(error, InputError) and error.todo == "prep"
    note_failure(run.path, "train", FloatingPointError("the loss is not finite"))
    assert str(noted_failure(run, "train")) == "the loss is not finite"
    try:
        raise KeyError("oops")
    except KeyError as cause:
        note_failure(run.path, "train", cause)
    unexpected = noted_failure(run, "train")
    assert isinstance(unexpected, TrainingError) and "test_positions" in unexpected.__notes__[0]


def test_targets_are_made_once_and_depend_on_seed_and_teacher(tmp_path: Path, tiny_store: Path) -> None:
    config = recipe("cpu-debug", crop=(24, 24), batch_size=2, distill_batches=2, teacher_steps=1)
    teacher = FusionPipeline(
        members=[build_denoiser(config)], lesion_head=build_lesion_head(config), diffusion=config.diffusion
    )
    reader = ShardReader(tiny_store, crop=config.crop, batch_size=2)
    settings = {"run": str(tmp_path), "config": config.to_dict(), "data_hash": "d", "teacher_key": "t"}
    work = Work(job="distill", settings=settings)
    made = Targets.of(work, config, teacher, reader)
    assert made.batches[0]["teacher"].shape == (2, 1, 24, 24)
    assert made.batches[0]["vector"].shape == (2, 6)
    assert not torch.equal(made.batches[0]["vector"], made.batches[1]["vector"])
    assert float(made.batches[0]["teacher"].min()) >= 0 and float(made.batches[0]["teacher"].max()) <= 1
    (file,) = (tmp_path / "targets").iterdir()
    stamp = file.stat().st_mtime_ns
    again = Targets.of(work, config, teacher, reader)
    assert file.stat().st_mtime_ns == stamp
    for first, second in zip(made.batches, again.batches, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    Targets.of(work, config.changed({"seed": 1}), teacher, reader)
    Targets.of(Work(job="distill", settings=settings | {"teacher_key": "u"}), config, teacher, reader)
    assert len(list((tmp_path / "targets").iterdir())) == 3
    assert made.batch(5) is made.batches[1]


def test_volumes_are_seen_as_cubes_and_as_slabs(tiny_store: Path) -> None:
    changes = {"crop": (16, 16, 16), "slab_crop": (16, 32, 32), "slab_share": 0.5, "batch_size": 1}
    config = recipe("gpu-3d", **changes)
    settings = {"config": config.to_dict(), "data": str(tiny_store), "data_hash": "d"}
    phase = train_plan(Work(job="train", settings=settings)).phases[0]
    batches = phase.batches({})
    shapes = [tuple(batches(step)["anatomy"].shape[2:]) for step in range(12)]
    assert shapes == [config.crop_at(step) for step in range(12)] and len(set(shapes)) == 2
    assert phase.effort is not None and phase.effort.checkpointing and phase.validations == 20


def test_a_dataset_without_lesions_trains_no_lesion_head(tmp_path: Path, tiny_store: Path) -> None:
    bare = CaseStore(tmp_path / "bare.zarr")
    cases = [CaseStore(tiny_store).read(case_id) for case_id in CaseStore(tiny_store).case_ids()]
    for case in cases:
        case.lesion[:] = 0
        bare.write(case)
    bare.commit_manifest([manifest_row(case) for case in cases])
    config = recipe("cpu-debug", crop=(24, 24), batch_size=2)
    for data, names in ((tiny_store, ["lesion_head", "denoiser"]), (tmp_path / "bare.zarr", ["denoiser"])):
        settings = {"config": config.to_dict(), "data": str(data), "data_hash": "d"}
        plan = train_plan(Work(job="train", settings=settings))
        assert [phase.name for phase in plan.phases] == names
    done = {"denoiser": plan.phases[0].build({})}
    value, terms = plan.phases[0].loss({})(
        done["denoiser"], plan.phases[0].batches({})(0), torch.Generator().manual_seed(0)
    )
    assert torch.isfinite(value) and "dice" not in terms
    plan.export(done, tmp_path / "model")
    assert FusionPipeline.from_pretrained(tmp_path / "model").lesion_head is None

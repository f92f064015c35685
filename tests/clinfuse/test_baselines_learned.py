"""Learned baselines: each trains, fuses, is kept and found again; what each paper's idea must do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clinfuse.baselines import BASELINES
from clinfuse.baselines.learned import (
    KINDS,
    LearnedConfig,
    learned_method,
    load_learned,
    save_learned,
    train_learned,
)
from clinfuse.baselines.learned.conditional import DiffIF, candidates
from clinfuse.baselines.learned.rectified import rectified
from clinfuse.baselines.learned.selfloss import fusion_loss
from clinfuse.case import Case
from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.presets import load_presets
from clinfuse.training.losses import Batch

PRESET = load_presets()["balanced"]
TINY = LearnedConfig(channels=(8, 8, 8), steps=3, adaptation_steps=2)


def batches_of(case: Case) -> Batch:
    """Four slices of the case, 32×24, as a training batch."""
    arrays = {"anatomy": case.anatomy, "companion": case.companion, **case.masks}
    batch = {k: torch.from_numpy(v[4:8, :, :24].astype(np.float32))[:, None] for k, v in arrays.items()}
    facts = {"spacing": torch.tensor([[1.5, 2.0]] * 4), "ct": torch.ones(4)}
    return {**batch, **facts, "aligned": batch["companion"]}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_trains_fuses_and_is_found_again(kind: str, tiny_case: Case, tmp_path: Path) -> None:
    batch = batches_of(tiny_case)
    logs: list[dict[str, float]] = []
    module = train_learned(
        kind, lambda step: batch, steps=3, config=TINY, on_step=lambda step, log: logs.append(log)
    )
    assert len(logs) == 3 and all(np.isfinite(v) for log in logs for v in log.values())
    fused = learned_method(module)(tiny_case, PRESET)
    assert fused.shape == tiny_case.shape and fused.dtype == np.float32
    assert np.isfinite(fused).all() and fused.min() >= 0 and fused.max() <= 1

    folder = save_learned(module, tmp_path / kind, data="tiny")
    again = BASELINES[f"{kind}={folder}"](tiny_case, PRESET)
    assert np.allclose(again, fused, atol=1e-6), "same case, same weights, same noise"
    assert sorted(p.name for p in folder.iterdir()) == ["baseline.json", "model.safetensors"]


@pytest.mark.parametrize("kind", ["fusiondiff", "diffif"])
def test_conditional_diffusion_makes_its_target_and_no_noise(kind: str, tiny_case: Case) -> None:
    """A network shown one batch gives back its target from pure noise, nearer than either source."""
    batch = batches_of(tiny_case)
    config = LearnedConfig(channels=(16, 16, 16), steps=8)
    module = train_learned(kind, lambda step: batch, steps=120, learning_rate=3e-3, config=config)
    fused = module.fuse(batch["anatomy"], batch["companion"], 7)
    target = module.target(batch)  # type: ignore[operator]
    off = [
        float((image - target).square().mean().sqrt())
        for image in (fused, batch["anatomy"], batch["companion"])
    ]
    assert off[0] < 0.5 * min(off[1:]), off


def test_convolutional_fusion_learns(tiny_case: Case) -> None:
    batch = batches_of(tiny_case)
    losses: list[float] = []
    train_learned(
        "conv",
        lambda step: batch,
        steps=40,
        learning_rate=5e-3,
        config=TINY,
        on_step=lambda step, log: losses.append(log["fusion"]),
    )
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_test_time_training_lowers_its_own_loss_and_leaves_the_model(tiny_case: Case) -> None:
    batch = batches_of(tiny_case)
    sources = batch["anatomy"], batch["companion"]
    torch.manual_seed(0)
    module = KINDS["test_time"](LearnedConfig(channels=(8, 8, 8), adaptation_steps=20)).eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    plain = KINDS["conv"].fuse(module, *sources, 0)
    adapted = module.fuse(*sources, 0)
    assert fusion_loss(adapted, *sources).mean() < fusion_loss(plain, *sources).mean()
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_targeted_search_takes_the_best_candidate(tiny_case: Case) -> None:
    batch = batches_of(tiny_case)
    target = DiffIF(TINY).target(batch)
    scores = [
        fusion_loss(f, batch["anatomy"], batch["aligned"])
        for f in candidates(batch["anatomy"], batch["aligned"])
    ]
    best = torch.stack(scores).min(dim=0).values
    assert torch.allclose(fusion_loss(target, batch["anatomy"], batch["aligned"]), best)


def test_rectification_moves_towards_the_sources() -> None:
    """A wild estimate is drawn in between sources that agree; where they agree with it, nothing moves."""
    same = torch.full((1, 1, 8, 8), 0.2)
    assert torch.allclose(rectified(same, same, same), same, atol=1e-6)
    wild = torch.full((1, 1, 8, 8), -0.9)
    moved = rectified(wild, same, same)
    assert ((moved - same).abs() < (wild - same).abs()).all()


def test_the_loss_prefers_a_fusion_to_either_source(tiny_case: Case) -> None:
    batch = batches_of(tiny_case)
    a, c = batch["anatomy"], batch["companion"]
    loss = {
        name: fusion_loss(f, a, c).mean() for name, f in (("max", torch.maximum(a, c)), ("a", a), ("c", c))
    }
    assert loss["max"] < loss["a"] and loss["max"] < loss["c"]


def test_bad_settings_and_folders_are_refused(tmp_path: Path, tiny_case: Case) -> None:
    with pytest.raises(ConfigError, match="3 multiples of 8"):
        LearnedConfig(channels=(8, 9, 8))
    with pytest.raises(ConfigError, match="1 <= steps"):
        LearnedConfig(steps=0)
    with pytest.raises(ConfigError, match="conv"):
        train_learned("gan", lambda step: batches_of(tiny_case), steps=1)
    (tmp_path / "baseline.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        load_learned(tmp_path)

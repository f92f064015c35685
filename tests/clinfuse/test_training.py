"""Training: losses fall, a resumed run continues exactly, configurations are checked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clinfuse.case import Case
from clinfuse.errors import ConfigError, ModelFolderError
from clinfuse.method.jitter import apply, draw
from clinfuse.method.prior import findings
from clinfuse.pipeline import FusionPipeline
from clinfuse.presets import load_presets
from clinfuse.training import (
    Batch,
    TrainConfig,
    TrainState,
    build_denoiser,
    build_lesion_head,
    denoiser_loss,
    fit,
    lesion_head_loss,
    recipe,
    student_loss,
)
from clinfuse.training.distill import between, guided_target
from clinfuse.training.losses import (
    HUBER,
    draw_vectors,
    inputs_of,
    jittered_companion,
    pseudo_huber,
)
from clinfuse.training.spacing import by_spacing


@pytest.fixture
def config() -> TrainConfig:
    changes = {
        "crop": (16, 16),
        "batch_size": 2,
        "denoiser.channels": (8, 16),
        "lesion_head.channels": (4, 8),
    }
    return recipe("cpu-debug", **{**changes, "teacher_steps": 2, "distill_batches": 2})


@pytest.fixture
def batch(tiny_case: Case) -> Batch:
    """Two axial 32×24 crops of the tiny case."""

    def crop(array: object) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float32)[5:7, :, 2:26][:, None]

    names = {"anatomy": "anatomy", "companion": "companion", "aligned": "companion"}
    images = {k: crop(getattr(tiny_case, v)) for k, v in names.items()}
    masks = {roi: crop(mask) for roi, mask in tiny_case.masks.items()}
    return images | masks | {"spacing": torch.tensor([[1.5, 2.0]] * 2), "ct": torch.ones(2)}


def test_losses_fall(config: TrainConfig, batch: Batch) -> None:
    head = build_lesion_head(config)
    logs = fit(head, lesion_head_loss(config), lambda _: batch, steps=60, learning_rate=1e-2)
    assert logs[-1]["segmentation"] < 0.9 * logs[0]["segmentation"]
    head.freeze()
    denoiser = build_denoiser(config)
    logs = fit(denoiser, denoiser_loss(config, head), lambda _: batch, steps=30, learning_rate=5e-3)
    assert sum(row["simple"] for row in logs[-8:]) < 0.7 * sum(row["simple"] for row in logs[:8])
    assert {"brain", "bone", "dice", "nsd", "hd", "seam", "loss"} <= set(logs[-1])


def test_the_lesion_heads_loss_is_on_the_batch_s_device_alone(config: TrainConfig, batch: Batch) -> None:
    """Tensors without memory stand for those of a GPU: mixing them with others fails; to read the loss must."""
    loss, head = lesion_head_loss(config), build_lesion_head(config).to("meta")
    away = {name: value if name == "spacing" else value.to("meta") for name, value in batch.items()}
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        loss(head, away, torch.Generator().manual_seed(0))


def test_student_learns_from_the_guided_teacher(config: TrainConfig, batch: Batch) -> None:
    teacher = build_denoiser(config).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    pipeline = FusionPipeline(members=[teacher], lesion_head=None, diffusion=config.diffusion)
    preset = load_presets()["balanced"]
    targets = [guided_target(pipeline, batch, p, config, seed=3) for p in (preset, between(preset, 5))]
    assert [t["teacher"].shape for t in targets] == [batch["anatomy"].shape] * 2
    assert not torch.equal(targets[0]["vector"], targets[1]["vector"])
    student = build_denoiser(config, member=1)
    loss = student_loss(config, teacher, None)
    logs = fit(student, loss, lambda step: targets[step % 2], steps=20, learning_rate=5e-3)
    assert logs[-1]["consistency"] < logs[0]["consistency"]


def test_a_students_gap_counts_by_its_square_then_by_its_size() -> None:
    gap = torch.tensor([0.0, HUBER / 100, -100 * HUBER], dtype=torch.float64, requires_grad=True)
    value = pseudo_huber(gap.square())
    torch.testing.assert_close(value[1].item(), (HUBER / 100) ** 2 / (2 * HUBER), rtol=1e-4, atol=0)
    torch.testing.assert_close(value[2].item(), 99 * HUBER, rtol=1e-4, atol=0)
    value.sum().backward()
    torch.testing.assert_close(
        gap.grad, torch.tensor([0.0, 0.01, -1.0], dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_resumed_run_equals_an_unbroken_one(config: TrainConfig, batch: Batch, tmp_path: Path) -> None:
    def run(steps: int, start: Path | None = None, save: Path | None = None) -> torch.nn.Module:
        denoiser = build_denoiser(config)

        def on_step(step: int, _logs: dict[str, float], state: TrainState) -> None:
            if save is not None and step == 3:
                state.save(save)

        loss = denoiser_loss(config, None)
        fit(denoiser, loss, lambda _: batch, steps=steps, learning_rate=1e-3, start=start, on_step=on_step)
        return denoiser

    whole = run(6, save=tmp_path)
    resumed = run(6, start=tmp_path)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_broken_checkpoint_is_refused(config: TrainConfig, batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ModelFolderError, match="checkpoint"):
        fit(
            build_denoiser(config),
            denoiser_loss(config, None),
            lambda _: batch,
            steps=1,
            learning_rate=1,
            start=tmp_path,
        )


def test_configuration_round_trip_and_changes() -> None:
    for name in ("cpu-debug", "cpu-small", "gpu-2d", "gpu-3d"):
        config = recipe(name)
        assert TrainConfig.from_dict(config.to_dict()) == config
    assert recipe("cpu-debug", **{"denoiser.anchor_std": 0.3}).denoiser.anchor_std == 0.3
    with pytest.raises(ConfigError, match="no such recipe"):
        recipe("gpu-4d")
    with pytest.raises(ConfigError, match="no such training option"):
        recipe("cpu-debug", nonsense=1)
    with pytest.raises(ConfigError, match="crop"):
        recipe("cpu-debug", crop=(17, 16))


def test_without_jitter_the_companion_is_the_aligned_one(config: TrainConfig, batch: Batch) -> None:
    """What is stored may be further off than any jitter; a share of 1 takes nothing else than warps."""
    stored = {**batch, "companion": torch.rand_like(batch["aligned"])}
    for share in (0.0, 1e-9):
        seen = jittered_companion(
            stored, replace(config, jitter_share=share), torch.Generator().manual_seed(0)
        )
        assert torch.equal(seen, batch["aligned"])
    seen = jittered_companion(stored, replace(config, jitter_share=1.0), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        torch.rand((), generator=generator)
        warp = draw(config.jitter, generator, 2)
        assert torch.equal(seen[i], apply(warp, batch["aligned"][i], (1.5, 2.0)))
        assert not torch.equal(seen[i], batch["aligned"][i])


def with_spacings(batch: Batch, *rows: tuple[float, float]) -> Batch:
    return {**batch, "spacing": torch.tensor(rows)}


@pytest.mark.parametrize("grey", [0.0, 0.85])
def test_target_and_network_agree_on_the_findings(config: TrainConfig, batch: Batch, grey: float) -> None:
    """A fresh network answers with the prior that it sees; with aligned pairs and no refinement it is the target."""
    changes = {"refine_steps": 0, "jitter_share": 0, "denoiser.anchor_std": 0, "denoiser.finding_grey": grey}
    config = config.changed(changes)
    bleeding = {**batch, "aligned": batch["aligned"] + 0.3 * batch["lesion"]}
    brain, bone = bleeding["brain"], bleeding["bone"]
    assert float(findings(bleeding["aligned"], brain, bone).max()) > 0.5
    loss = denoiser_loss(config, None)
    _, logs = loss(build_denoiser(config), bleeding, torch.Generator().manual_seed(0))
    assert logs["simple"] < 1e-8
    other = config.changed({"denoiser.finding_grey": 0.85 - grey})
    _, logs = denoiser_loss(other, None)(build_denoiser(config), bleeding, torch.Generator().manual_seed(0))
    assert logs["simple"] > 1e-3


def test_of_a_tracer_no_findings_are_painted(config: TrainConfig, batch: Batch) -> None:
    """Networks that paint in different greys see the same of a tracer, and other things of a CT, sample by sample."""
    bleeding = {**batch, "aligned": batch["aligned"] + 0.3 * batch["lesion"], "ct": torch.tensor([1.0, 0.0])}
    inputs = inputs_of(bleeding, bleeding["aligned"], torch.full((2, 6), 1 / 3))
    one, other = (
        build_denoiser(config.changed({"denoiser.finding_grey": grey})).look(inputs).painted
        for grey in (0.0, 0.85)
    )
    gap = (one - other).abs().amax(dim=(1, 2, 3))
    assert gap[0] > 0.1 and gap[1] == 0


def test_each_sample_s_millimetres_are_its_own(config: TrainConfig, batch: Batch) -> None:
    """Only sample 1 has a lesion: the lesion terms follow its spacing, not that of sample 0."""
    config = replace(config, jitter_share=0.0)
    loss = denoiser_loss(config, build_lesion_head(config).freeze())
    lesion = batch["lesion"] * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)

    def terms(first: tuple[float, float], second: tuple[float, float]) -> dict[str, float]:
        here = with_spacings({**batch, "lesion": lesion}, first, second)
        return loss(build_denoiser(config), here, torch.Generator().manual_seed(0))[1]

    fine, coarse = (1.0, 1.0), (4.0, 3.0)
    assert terms(coarse, fine) == pytest.approx(terms(fine, fine), rel=1e-5)
    assert terms(coarse, coarse) == pytest.approx(terms(fine, coarse), rel=1e-5)
    assert terms(fine, coarse)["hd"] > 1.2 * terms(fine, fine)["hd"]


def test_targets_of_a_batch_with_several_spacings_are_those_of_each_alone(
    config: TrainConfig, batch: Batch
) -> None:
    config = replace(config, refine_steps=0)
    teacher = build_denoiser(replace(config, denoiser=replace(config.denoiser, anchor_std=0.2)))
    head = build_lesion_head(config)
    pipeline = FusionPipeline(members=[teacher], lesion_head=head, diffusion=config.diffusion)
    preset = load_presets()["balanced"].changed(eta=0.05)
    mixed = with_spacings(batch, (4.0, 3.0), (1.0, 1.0))
    both = guided_target(pipeline, mixed, preset, config, seed=3)
    assert set(both) == {*batch, "teacher", "vector"}
    for i in (0, 1):
        alone = {name: value[i : i + 1] for name, value in mixed.items()}
        wanted = guided_target(pipeline, alone, preset, config, seed=3 + i)
        torch.testing.assert_close(both["teacher"][i : i + 1], wanted["teacher"], atol=1e-5, rtol=0)
    other = guided_target(pipeline, with_spacings(batch, *[(4.0, 3.0)] * 2), preset, config, seed=3)
    assert not torch.allclose(both["teacher"][1], other["teacher"][1], atol=1e-4)


def test_spacings_that_differ_by_rounding_are_one(batch: Batch) -> None:
    seen: list[int] = []

    def act(part: Batch) -> Batch:
        seen.append(len(part["spacing"]))
        return {"spacing": part["spacing"]}

    rows = torch.tensor([[2.0, 1.0], [1.0, 1.0], [2.0000002, 1.0]])
    assert torch.equal(by_spacing({"spacing": rows}, act)["spacing"], rows)
    assert sorted(seen) == [1, 2]
    by_spacing({"spacing": rows[[0, 2]]}, act)
    assert seen[2:] == [2]


def test_preset_vectors_fill_both_simplices() -> None:
    vectors = draw_vectors(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(vectors[:, :3].sum(dim=1), torch.ones(4000))
    torch.testing.assert_close(vectors.mean(dim=0), torch.full((6,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(vectors.var(dim=0), torch.full((6,), 1 / 18), atol=0.01, rtol=0)

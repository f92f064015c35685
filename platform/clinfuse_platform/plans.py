"""The three sorts of training job: lesion head and denoiser, the distilled student, further members of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinfuse_platform.baseline_plan import JOB as BASELINES_JOB
from clinfuse_platform.baseline_plan import baseline_plan
from clinfuse_platform.phases import Modules, Phase, Plan, Work

if TYPE_CHECKING:
    from clinfuse_prep.reader import ShardReader
    from clinfuse_prep.sampling import Shares

    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import Batch, TrainConfig

INTENSITY_CASES = 64


def train_plan(work: Work) -> Plan:
    """Lesion head first, then frozen beside the denoiser (Eq. 3); exports the guided teacher.

    Where no training case has a lesion there is nothing for the head to learn: the model has none, and its lesion
    terms are absent.
    """
    from clinfuse_prep.sampling import AROUND_LESIONS

    from clinfuse.training import build_denoiser, build_lesion_head, denoiser_loss, lesion_head_loss
    from clinfuse_platform.provenance import has_lesions

    config, lesions = _config(work), has_lesions(work.settings["data"])
    reader = _reader(work, config)
    common: dict[str, Any] = {
        "cases": reader.cases_at,
        "effort": config.effort,
        "validations": config.validations,
    }
    head = Phase(
        name="lesion_head",
        steps=config.lesion_steps,
        learning_rate=config.lesion_learning_rate,
        seed=config.seed * 10 + 1,
        build=lambda done: build_lesion_head(config),
        loss=lambda done: lesion_head_loss(config),
        batches=lambda done: _varied(work, config, reader, AROUND_LESIONS),
        **common,
    )
    denoiser = Phase(
        name="denoiser",
        steps=config.denoiser_steps,
        learning_rate=config.learning_rate,
        seed=config.seed * 10 + 2,
        build=lambda done: build_denoiser(config),
        loss=lambda done: denoiser_loss(config, done["lesion_head"].freeze() if lesions else None),
        batches=lambda done: _varied(work, config, reader),
        **common,
    )

    def export(done: Modules, folder: Path) -> None:
        from clinfuse.pipeline import FusionPipeline

        FusionPipeline(
            members=[done["denoiser"].cpu()],
            lesion_head=done["lesion_head"].cpu() if lesions else None,
            diffusion=config.diffusion,
            metadata=_facts(work) | {"intensity": _intensity(work)},
        ).save_pretrained(folder)

    return Plan(phases=(head, denoiser) if lesions else (denoiser,), export=export)


def distill_plan(work: Work) -> Plan:
    """The student starts as the teacher and learns its guided results in few steps (Section 3.5)."""
    from clinfuse.pipeline import FusionPipeline

    config, teacher = _config(work), _pipeline(work, "teacher")
    student = _student_phase(work, config, teacher, name="student", member=0, steps=config.distill_iterations)

    def export(done: Modules, folder: Path) -> None:
        FusionPipeline(
            members=[done["student"].cpu()],
            lesion_head=_on_cpu(teacher).lesion_head,
            diffusion=config.diffusion,
            kind="student",
            student_steps=config.student_steps,
            presets=teacher.presets,
            metadata=teacher.metadata | _facts(work) | {"teacher": work.settings["teacher_key"]},
        ).save_pretrained(folder)

    return Plan(phases=(student,), export=export)


def members_plan(work: Work) -> Plan:
    """Members beside the base model's own (settings["members"]: their numbers, from 1), one after the other, each from
    its own initial weights and noise and with a model folder of its own.

    Members of a student learn the same guided teacher's results as it did; those of a teacher learn Eq. 3.
    """
    config, teacher, base = _config(work), _pipeline(work, "teacher"), _pipeline(work, "base")
    phases = []
    for number in work.settings["members"]:
        name = member_name(number)
        if base.kind == "student":
            phase = _student_phase(work, config, teacher, name=name, member=number, steps=config.member_steps)
        else:
            phase = _teacher_member(work, config, teacher, number)
        export = partial(_export_member, work, base, name)
        phases.append(replace(phase, kind=member_kind(number), export=export))
    return Plan(phases=tuple(phases), export=None)


def member_name(number: int) -> str:
    """Name of a member's phase, and of its job where it has one of its own."""
    return f"member_{number}"


def member_kind(number: int) -> str:
    """Its model folder in the run: the base model with this member in its own one's stead."""
    return f"members/{number}"


def _export_member(work: Work, base: FusionPipeline, name: str, done: Modules, folder: Path) -> None:
    metadata = base.metadata | _facts(work) | {"base": work.settings["base_key"]}
    replace(base, members=[done[name]], metadata=metadata).save_pretrained(folder)


def _student_phase(
    work: Work, config: TrainConfig, teacher: FusionPipeline, *, name: str, member: int, steps: int
) -> Phase:
    from clinfuse.training import build_denoiser, student_loss
    from clinfuse_platform.targets import Targets

    reader = _reader(work, config)
    targets: list[Targets] = []

    def build(done: Modules) -> Any:
        student = build_denoiser(config, member)
        if member == 0:
            student.load_state_dict(teacher.members[0].state_dict())
        return student

    def batches(done: Modules) -> Callable[[int], Any]:
        targets.append(Targets.of(work, config, teacher, _varied(work, config, reader)))
        return targets[0].batch

    return Phase(
        name=name,
        steps=steps,
        learning_rate=config.learning_rate,
        seed=config.seed * 10 + 3 + member,
        build=build,
        loss=lambda done: student_loss(config, teacher.members[0], teacher.lesion_head),
        batches=batches,
        cases=lambda step: reader.cases_at(step % config.distill_batches),
        effort=config.effort,
        validations=config.validations,
    )


def _teacher_member(work: Work, config: TrainConfig, teacher: FusionPipeline, number: int) -> Phase:
    from clinfuse.training import build_denoiser, denoiser_loss

    reader = _reader(work, config)
    return Phase(
        name=member_name(number),
        steps=config.member_steps,
        learning_rate=config.learning_rate,
        seed=config.seed * 10 + 3 + number,
        build=lambda done: build_denoiser(config, number),
        loss=lambda done: denoiser_loss(config, teacher.lesion_head),
        batches=lambda done: _varied(work, config, reader),
        cases=reader.cases_at,
        effort=config.effort,
        validations=config.validations,
    )


def _config(work: Work) -> TrainConfig:
    from clinfuse.training import TrainConfig

    return TrainConfig.from_dict(work.settings["config"])


def _reader(work: Work, config: TrainConfig) -> ShardReader:
    from clinfuse_prep.reader import ShardReader

    return ShardReader(
        work.settings["data"],
        split="train",
        crop=config.crop,
        batch_size=config.batch_size,
        spatial_dims=config.spatial_dims,
        seed=config.seed,
        rank=work.rank,
        world_size=work.world_size,
    )


def _varied(
    work: Work, config: TrainConfig, reader: ShardReader, shares: Shares | None = None
) -> Callable[[int], Batch]:
    """The reader's batches, half of their crops mirrored, a share in other contrasts, a share with a tracer's image;
    the same at every run."""
    from clinfuse.training.contrast import vary_contrast
    from clinfuse.training.mirror import mirrored
    from clinfuse.training.tracer import with_tracers

    first = (config.seed * 64 + work.rank) * 1_000_003

    def batch(step: int) -> Batch:
        crops = mirrored(reader(step, config.crop_at(step), shares), seed=first + step)
        crops = vary_contrast(crops, config.contrast_share, seed=first + step)
        return with_tracers(crops, config.tracer_share, seed=first + step)

    return batch


def _pipeline(work: Work, role: str) -> FusionPipeline:
    """The "teacher" or "base" as it was trained: a calibration of it is no other model's, and changes none."""
    from clinfuse.pipeline import FusionPipeline
    from clinfuse_platform.runs import find_model

    return FusionPipeline.from_pretrained(
        find_model(work.settings[role]), device=work.device, calibrated=False
    )


def _on_cpu(pipeline: FusionPipeline) -> FusionPipeline:
    for member in pipeline.members:
        member.cpu()
    if pipeline.lesion_head is not None:
        pipeline.lesion_head.cpu()
    return pipeline


def _facts(work: Work) -> dict[str, Any]:
    config = work.settings["config"]
    facts = {"recipe": config["recipe"], "seed": config["seed"], "workers": work.world_size}
    return facts | {"data_hash": work.settings["data_hash"], **_steps(work)}


def _intensity(work: Work) -> dict[str, Any]:
    """What serving compares requests with; from so many training cases at most, as reading takes time."""
    from clinfuse_prep.store import CaseStore

    from clinfuse.intensity import intensity_facts

    store = CaseStore(work.settings["data"])
    return intensity_facts(store.read(case_id) for case_id in store.case_ids("train")[:INTENSITY_CASES])


def _steps(work: Work) -> dict[str, int]:
    names = {"train": ("train", "denoiser_steps"), "distill": ("distill", "distill_iterations")}
    name, key = names.get(work.plan, ("ensemble", "member_steps"))
    return {f"{name}_steps": int(work.settings["config"][key])}


PLANS: dict[str, Callable[[Work], Plan]] = {
    "train": train_plan,
    "distill": distill_plan,
    "ensemble": members_plan,
    BASELINES_JOB: baseline_plan,
}

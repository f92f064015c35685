"""What a student learns from: batches with the guided teacher's fused image, made once and kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clinfuse_platform.phases import Work
from clinfuse_platform.provenance import code_hash
from clinfuse_platform.storage import storage_path, write_atomic

if TYPE_CHECKING:
    import torch

    from clinfuse.pipeline import FusionPipeline
    from clinfuse.training import Batch, TrainConfig


@dataclass(frozen=True)
class Targets:
    """Batches with "teacher" (B, 1, *crop) in [0, 1] and "vector" (B, 6) added, used in turn."""

    batches: list[Batch]

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.batches[step % len(self.batches)]

    @classmethod
    def of(
        cls, work: Work, config: TrainConfig, teacher: FusionPipeline, batches_at: Callable[[int], Batch]
    ) -> Targets:
        """This worker's targets from its batches 0, 1, …

        Those kept in the run folder are taken if they are of the same teacher, settings and code.
        """
        from safetensors.torch import load, save

        from clinfuse.training.distill import between, guided_target

        file = storage_path(work.settings["run"]) / "targets" / f"{_key(work, config, teacher)}.safetensors"
        if file.exists():
            return cls(_unpack(load(file.read_bytes())))
        presets = list(teacher.presets.values())
        batches = []
        for number in range(config.distill_batches):
            seed = _seed(work, config, number)
            preset = presets[(number * work.world_size + work.rank) % len(presets)]
            preset = between(preset, seed) if number % 2 else preset
            batches.append(guided_target(teacher, batches_at(number), preset, config, seed=seed))
        packed = {f"{i}.{k}": v.contiguous() for i, batch in enumerate(batches) for k, v in batch.items()}
        write_atomic(file, save(packed))
        return cls(batches)


def _key(work: Work, config: TrainConfig, teacher: FusionPipeline) -> str:
    facts = [config.seed, config.batch_size, config.crop, config.distill_batches, config.teacher_steps]
    facts += [config.contrast_share, config.tracer_share, config.slab_crop, config.slab_share]
    presets = [preset.as_dict() for preset in teacher.presets.values()]
    text = json.dumps([work.settings["teacher_key"], work.settings["data_hash"], code_hash(), facts, presets])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{work.rank}-of-{work.world_size}"


def _seed(work: Work, config: TrainConfig, number: int) -> int:
    return ((config.seed * 64 + work.rank) * 100_003 + number) * config.batch_size


def _unpack(packed: dict[str, torch.Tensor]) -> list[Batch]:
    batches: dict[int, Batch] = {}
    for key, value in packed.items():
        number, name = key.split(".", 1)
        batches.setdefault(int(number), {})[name] = value
    return [batches[number] for number in sorted(batches)]

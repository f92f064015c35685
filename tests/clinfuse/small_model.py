"""A pipeline of fresh, very small networks."""

from clinfuse.pipeline import FusionPipeline
from clinfuse.training import build_denoiser, build_lesion_head, recipe

SMALL = {"crop": (16, 16), "denoiser.channels": (8, 16), "lesion_head.channels": (4, 8)}


def make(kind: str = "student", members: int = 2, **changes: object) -> FusionPipeline:
    config = recipe("cpu-debug", **{**SMALL, **changes})
    return FusionPipeline(
        members=[build_denoiser(config, member=i) for i in range(members)],
        lesion_head=build_lesion_head(config),
        diffusion=config.diffusion,
        kind=kind,
        student_steps=2,
        metadata={"recipe": config.recipe},
    )

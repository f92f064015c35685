"""A pipeline of fresh, very small networks, and an error head that knows nothing."""

import numpy as np

from clinfuse.method.error_features import COUNT
from clinfuse.method.error_head import ErrorHead
from clinfuse.pipeline import FusionPipeline
from clinfuse.training import build_denoiser, build_lesion_head, recipe

SMALL = {"crop": (16, 16), "denoiser.channels": (8, 16), "lesion_head.channels": (4, 8)}
ERROR_HEAD = ErrorHead(
    mean=np.zeros(COUNT, np.float32),
    scale=np.ones(COUNT, np.float32),
    weights=(np.zeros((1, 1, COUNT), np.float32),),
    biases=(np.zeros((1, 1), np.float32),),
    ceiling=1.0,
)


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

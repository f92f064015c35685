"""Training without a cluster: configuration, the three losses, and the one loop that every worker runs."""

from clinfuse.training.config import RECIPES, TrainConfig, recipe
from clinfuse.training.effort import Effort
from clinfuse.training.loop import fit
from clinfuse.training.losses import Batch, denoiser_loss, lesion_head_loss, student_loss
from clinfuse.training.models import build_denoiser, build_lesion_head
from clinfuse.training.state import TrainState

__all__ = [
    "RECIPES",
    "Batch",
    "Effort",
    "TrainConfig",
    "TrainState",
    "build_denoiser",
    "build_lesion_head",
    "denoiser_loss",
    "fit",
    "lesion_head_loss",
    "recipe",
    "student_loss",
]

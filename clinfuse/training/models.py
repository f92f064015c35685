"""Seeded construction of the two networks that training starts from."""

from __future__ import annotations

import torch

from clinfuse.method.denoiser import Denoiser
from clinfuse.method.lesion_head import LesionHead
from clinfuse.training.config import TrainConfig


def build_denoiser(config: TrainConfig, member: int = 0) -> Denoiser:
    """A fresh denoiser; every ensemble member has its own initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 1000 + member)
        return Denoiser(config.denoiser, config.diffusion)


def build_lesion_head(config: TrainConfig) -> LesionHead:
    """A fresh lesion head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 1000 + 999)
        return LesionHead(config.lesion_head)

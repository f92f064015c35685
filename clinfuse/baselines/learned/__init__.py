"""Learned baselines, small and from the papers' descriptions: FusionDiff, Diff-IF, DDFM, TTTFusion, IFCNN kind."""

from clinfuse.baselines.learned.base import Learned, LearnedConfig
from clinfuse.baselines.learned.store import KINDS, learned_method, load_learned, save_learned, train_learned

__all__ = [
    "KINDS",
    "Learned",
    "LearnedConfig",
    "learned_method",
    "load_learned",
    "save_learned",
    "train_learned",
]

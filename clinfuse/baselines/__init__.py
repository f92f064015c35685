"""Fusion methods to compare with, behind one interface: a case and a preset in, a fused volume out."""

from clinfuse.baselines.registry import BASELINES, BUILT_IN, TRIVIAL, Method, adapted, label_of

__all__ = ["BASELINES", "BUILT_IN", "TRIVIAL", "Method", "adapted", "label_of"]

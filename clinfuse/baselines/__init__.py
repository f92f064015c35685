"""Fusion methods to compare with, behind one interface: a case and a preset in, a fused volume out."""

from clinfuse.baselines.registry import BASELINES, TRIVIAL, Method

__all__ = ["BASELINES", "TRIVIAL", "Method"]

"""Measures of fused images, each with its unit, its convention and its value on an empty region."""

from clinfuse.metrics.field import FIELD, field_metrics
from clinfuse.metrics.fmi import fmi
from clinfuse.metrics.fsim import fsim, roi_fsim
from clinfuse.metrics.lesion import LesionScores, dice, hd95, lesion_scores, nsd
from clinfuse.metrics.roi import outside_sources, roi_psnr, roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.metrics.surface import SurfaceDistances, surface_distances
from clinfuse.metrics.uncertainty import (
    Reliability,
    Sparsification,
    brier,
    coverage,
    ece,
    rank_correlation,
    reliability,
    sparsification,
)

__all__ = [
    "FIELD",
    "LesionScores",
    "Reliability",
    "Sparsification",
    "SurfaceDistances",
    "brier",
    "coverage",
    "dice",
    "ece",
    "field_metrics",
    "fmi",
    "fsim",
    "hd95",
    "lesion_scores",
    "nsd",
    "outside_sources",
    "rank_correlation",
    "reliability",
    "roi_fsim",
    "roi_psnr",
    "roi_ssim",
    "seam_index",
    "sparsification",
    "surface_distances",
]

"""Measures of fused images, each with its unit, its convention and its value on an empty region."""

from clinfuse.metrics.lesion import LesionScores, dice, hd95, lesion_scores, nsd
from clinfuse.metrics.roi import outside_sources, roi_psnr, roi_ssim
from clinfuse.metrics.seam import seam_index
from clinfuse.metrics.surface import SurfaceDistances, surface_distances

__all__ = [
    "LesionScores",
    "SurfaceDistances",
    "dice",
    "hd95",
    "lesion_scores",
    "nsd",
    "outside_sources",
    "roi_psnr",
    "roi_ssim",
    "seam_index",
    "surface_distances",
]

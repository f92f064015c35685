"""N4 bias field correction of MR, at a quarter of the resolution, applied at full."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from clinfuse_prep.geometry import Grid
from clinfuse_prep.itk import to_itk
from clinfuse_prep.masks.head import head_mr


def n4(volume: NDArray[np.float32], grid: Grid, shrink: int = 3, iterations: int = 30) -> NDArray[np.float32]:
    """Divide an MR by its estimated bias field, which is smooth over the voxels: of the grid only spacings count.

    Args:
        volume: (D, H, W), any unit; negative values are set to 0.
        shrink: reduction per axis while the field is estimated (not along axes with few voxels).

    Returns:
        (D, H, W) float32, same unit.

    Reference: Tustison et al., N4ITK, IEEE TMI 29(6), 2010.
    """
    positive = np.maximum(volume, 0)
    straight = Grid(grid.shape, np.diag([*grid.spacing[::-1], 1.0]))
    image = sitk.Cast(to_itk(positive, straight), sitk.sitkFloat32)
    mask = to_itk(head_mr(volume, grid.spacing).astype(np.uint8), straight)
    factors = [shrink if n >= 16 * shrink else 1 for n in volume.shape[::-1]]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([iterations] * 3)
    corrector.SetNumberOfControlPoints([max(4, min(6, n)) for n in volume.shape[::-1]])
    corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return (positive / np.exp(field)).astype(np.float32)

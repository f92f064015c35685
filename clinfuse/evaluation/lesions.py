"""The lesion as the frozen lesion head sees it in an image: Ŝ(F), thresholded, of one piece with its neighbours.

A head of two dimensions sees each slice alone: what it finds in one slice and not beside it is mostly none. So its
probabilities are smoothed across slices, and small separate pieces are dropped, of whatever head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from clinfuse.case import FloatArray, MaskArray

THRESHOLD = 0.5
BATCH = 16
ACROSS_SLICES_MM = 2.0
LEAST_SHARE = 0.1


def segment_lesion(
    lesion_head: nn.Module, image: FloatArray, spacing_mm: Sequence[float], threshold: float = THRESHOLD
) -> MaskArray:
    """Segment one volume with a lesion head of two (slice by slice) or three dimensions.

    Args:
        lesion_head: `probability` (or, without one, the call itself) maps (B, 1, *S) in [0, 1] to probabilities
            (B, 1, *S); its `config.spatial_dims` is 2 or 3.
        image: (D, H, W) in [0, 1].
        spacing_mm: voxel spacing (D, H, W), mm.
        threshold: probability from which a voxel is lesion.

    Returns:
        (D, H, W) mask in {0, 1}: connected pieces (26 neighbours) whose summed probability is at least 0.1 of the
        greatest one's. Probabilities of a 2D head are smoothed across slices first (Gaussian, σ = 2 mm).

    Reference: dropping all but the main pieces, Isensee et al., Nature Methods 2021.
    """
    probability = lesion_probability(lesion_head, image)
    if _dims(lesion_head) == 2 and len(image) > 1:
        probability = ndimage.gaussian_filter1d(probability, ACROSS_SLICES_MM / spacing_mm[0], axis=0)
    return main_pieces(probability, threshold)


def main_pieces(probability: FloatArray, threshold: float = THRESHOLD) -> MaskArray:
    """Where (D, H, W) probabilities reach the threshold, less pieces of under 0.1 of the greatest one's sum."""
    pieces, count = ndimage.label(probability >= threshold, np.ones((3, 3, 3)))
    if not count:
        return np.zeros(probability.shape, np.uint8)
    sums = ndimage.sum_labels(probability, pieces, range(1, count + 1))
    return np.isin(pieces, 1 + np.flatnonzero(sums >= LEAST_SHARE * sums.max())).astype(np.uint8)


@torch.no_grad()
def lesion_probability(lesion_head: nn.Module, image: FloatArray) -> FloatArray:
    """Probability of lesion per voxel, (D, H, W) in [0, 1]; arguments as in `segment_lesion`."""
    parameter = next(lesion_head.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    volume = torch.from_numpy(np.array(image, dtype=np.float32)).to(device)
    probability_of = getattr(lesion_head, "probability", lesion_head)
    was_training = lesion_head.training
    lesion_head.eval()
    try:
        if _dims(lesion_head) == 3:
            probability: Tensor = probability_of(volume[None, None])[0, 0]
        else:
            probability = torch.cat([probability_of(part[:, None])[:, 0] for part in volume.split(BATCH)])
    finally:
        lesion_head.train(was_training)
    return np.asarray(probability.float().cpu().numpy())


def _dims(lesion_head: nn.Module) -> int:
    return int(getattr(getattr(lesion_head, "config", None), "spatial_dims", 2))

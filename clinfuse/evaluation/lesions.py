"""The lesion as the frozen lesion head sees it in an image: Ŝ(F), thresholded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from clinfuse.case import FloatArray, MaskArray

THRESHOLD = 0.5
BATCH = 16


def segment_lesion(lesion_head: nn.Module, image: FloatArray, threshold: float = THRESHOLD) -> MaskArray:
    """Segment one volume with a lesion head of two (slice by slice) or three dimensions.

    Args:
        lesion_head: `probability` (or, without one, the call itself) maps (B, 1, *S) in [0, 1] to probabilities
            (B, 1, *S); its `config.spatial_dims` is 2 or 3.
        image: (D, H, W) in [0, 1].
        threshold: probability from which a voxel is lesion.

    Returns:
        (D, H, W) mask in {0, 1}.
    """
    probability = lesion_probability(lesion_head, image)
    return (probability >= threshold).astype(np.uint8)


@torch.no_grad()
def lesion_probability(lesion_head: nn.Module, image: FloatArray) -> FloatArray:
    """Probability of lesion per voxel, (D, H, W) in [0, 1]; arguments as in `segment_lesion`."""
    parameter = next(lesion_head.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    volume = torch.from_numpy(np.array(image, dtype=np.float32)).to(device)
    dims = int(getattr(getattr(lesion_head, "config", None), "spatial_dims", 2))
    probability_of = getattr(lesion_head, "probability", lesion_head)
    was_training = lesion_head.training
    lesion_head.eval()
    try:
        if dims == 3:
            probability: Tensor = probability_of(volume[None, None])[0, 0]
        else:
            probability = torch.cat([probability_of(part[:, None])[:, 0] for part in volume.split(BATCH)])
    finally:
        lesion_head.train(was_training)
    return np.asarray(probability.float().cpu().numpy())

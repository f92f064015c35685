"""The averaged human brain that every simulated patient starts from: MNI152 T1, grey and white matter, 1 mm.

The maps ship inside the PyPI package nilearn (ICBM 152 linear/non-linear 2009a, BSD-like licence); nothing is
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from clinfuse.case import FloatArray
from clinfuse_prep.cohort.fields import Grid

SOURCE = "MNI152 ICBM 2009a T1, grey and white matter maps as shipped by the PyPI package nilearn"
LICENCE = (
    "template: (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, McGill University, free to use and "
    "redistribute with this notice; nilearn: BSD-3-Clause"
)
CSF_T1 = 0.30


@dataclass(frozen=True, kw_only=True)
class Template:
    """Maps (D, H, W) float32 in [0, 1] on one grid, cut to the brain's box.

    Attributes:
        grid: 1 mm grid in MNI152 millimetres.
        t1: T1-weighted intensity, outside the brain filled with the grey of CSF.
        grey, white: tissue fractions.
        brain: whole-brain mask, slightly smoothed, as a fraction.
    """

    grid: Grid
    t1: FloatArray
    grey: FloatArray
    white: FloatArray
    brain: FloatArray


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The template, read once per process."""
    from nilearn import datasets

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    images = [load(resolution=1) for load in loaders]
    volumes = [np.ascontiguousarray(image.get_fdata(dtype=np.float32).T) for image in images]
    affine = np.asarray(images[0].affine)
    inside = ndimage.binary_fill_holes(volumes[0] > 0)
    box = tuple(
        slice(max(s.start - 4, 0), s.stop + 4) for s in ndimage.find_objects(inside.astype(np.uint8))[0]
    )
    t1, grey, white = (volume[box].copy() for volume in volumes)
    brain = inside[box].astype(np.float32)
    t1 = np.where(brain > 0, t1, np.float32(CSF_T1))
    origin = tuple(float(affine[axis, 3] + box[2 - axis].start) for axis in (2, 1, 0))
    grid = Grid(shape=t1.shape, spacing=(1.0, 1.0, 1.0), origin=(origin[0], origin[1], origin[2]))
    return Template(grid=grid, t1=t1, grey=grey, white=white, brain=ndimage.gaussian_filter(brain, 0.7))

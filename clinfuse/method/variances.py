"""The three kinds of predicted variance (Section 3.4) and their plain sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HALF_SATURATION = 0.05
"""Without calibration a standard deviation of this size, image units, counts as a doubt of one half."""


class Variances(NamedTuple):
    """Aleatoric, epistemic and registration variance, arrays of one shape in image units²."""

    aleatoric: NDArray[Any]
    epistemic: NDArray[Any]
    registration: NDArray[Any]

    @property
    def total(self) -> NDArray[Any]:
        """Their sum, by the law of total variance (Lakshminarayanan et al. 2017, arXiv:1612.01474, Section 2.4)."""
        return np.asarray(self.aleatoric + self.epistemic + self.registration)

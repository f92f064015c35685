"""The error head: how far F is off at each voxel, learned from the true errors of training cases (Section 3.4).

The law of total variance adds aleatoric, epistemic and registration variance as if each were known exactly. Each is an
estimate with a scale of its own, and none sees whether the borders of the two sources lie on each other. Small
networks take the three and the voxel's surroundings (clinfuse.method.error_features) and foretell log |F − x₀|. They
are fitted on training patients (clinfuse.training.error_fit), and calibrated on validation patients like any other std.

In the brain F is wrong by what it does itself, not by moved borders, and real tissue has another texture than
simulated, in CT another contrast, too: what surroundings, companion and registration variance tell there does not
carry over to real pairs. So the brain has networks of its own, which see F's gap to the anatomy image and what its
draws differ by.

References: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, arXiv:2102.08501 (a second
predictor learns the first one's error, with its variance among the features); Yoo, Kweon, Learning Loss for Active
Learning, CVPR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clinfuse.case import Case, FloatArray
from clinfuse.errors import InputError
from clinfuse.method.error_features import COUNT, IN_BRAIN, features, head_voxels, only_brain
from clinfuse.method.perceptrons import Perceptrons
from clinfuse.method.variances import Variances

FILE = "error_head/model.safetensors"
"""Where a model folder keeps it."""
PARTS = {"brain": len(IN_BRAIN), "elsewhere": COUNT}
"""Of an error head, and how many features each looks at."""


@dataclass(frozen=True, kw_only=True)
class ErrorHead:
    """Networks for the brain, and for bone, lesions and the rest of the head.

    Attributes:
        brain: of the features `IN_BRAIN`, for voxels in the brain and in no other mask.
        elsewhere: of all features, for all other voxels.
        ceiling: the total variance that only one voxel in a thousand exceeded in fitting, image units².
    """

    brain: Perceptrons
    elsewhere: Perceptrons
    ceiling: float

    def std(self, case: Case, fused: FloatArray, variances: Variances) -> FloatArray:
        """Expected size of F's error, (D, H, W) float32 in image units, at least 0.

        Variance above the ceiling is more doubt than fitting has seen and is added whole. In the air around the head
        it is the root of the total variance.

        Args:
            case: with the companion as it was fused (aligned).
            fused: F (D, H, W) in [0, 1].
            variances: of F, image units².
        """
        total = variances.total
        result = np.sqrt(total).astype(np.float32)
        where = head_voxels(case)
        for own, rows in features(case, fused, variances, where):
            excess = np.maximum(total[own][where[own]] - self.ceiling, 0)
            result[own][where[own]] = np.sqrt(np.square(self.expected(rows)) + excess)
        return result

    def expected(self, rows: FloatArray) -> FloatArray:
        """Rows of features (n, COUNT) → expected size of the error (n,) in (0, 1], its geometric mean."""
        brain, result = only_brain(rows), np.empty(len(rows), dtype=np.float32)
        result[brain] = self.brain.answer(rows[brain][:, IN_BRAIN])
        result[~brain] = self.elsewhere.answer(rows[~brain])
        return np.asarray(np.exp(np.minimum(result, 0)))

    def to_bytes(self) -> bytes:
        """A safetensors file's content; `from_bytes` gives the same head back, to the last bit."""
        arrays = {"ceiling": np.array([self.ceiling])}
        for name in PARTS:
            arrays |= {f"{name}.{key}": array for key, array in getattr(self, name).arrays().items()}
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> ErrorHead:
        """The head that `to_bytes` wrote.

        Raises:
            InputError: no safetensors file, or arrays that do not fit together or are for other features.
        """
        try:
            tensors = load(data)
            parts = {name: Perceptrons.from_arrays(_of_part(tensors, f"{name}.")) for name in PARTS}
            for name, count in PARTS.items():
                parts[name].answer(np.zeros((1, count), dtype=np.float32))
            return cls(**parts, ceiling=float(tensors["ceiling"][0]))
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise InputError(
                "this is no error head of ours",
                expected=f"brain.*, elsewhere.* and ceiling for {len(IN_BRAIN)} and {COUNT} features",
                found=f"{type(error).__name__}: {error}",
                todo="run clinfuse calibrate again",
            ) from error


def _of_part(tensors: dict[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}

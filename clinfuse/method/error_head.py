"""The error head: how far F is off at each voxel, learned from the true errors of training cases (Section 3.4).

The law of total variance adds aleatoric, epistemic and registration variance as if each were known exactly. Each is an
estimate with a scale of its own, and none sees whether the borders of the two sources lie on each other. A small
network takes the three and the voxel's surroundings (clinfuse.method.error_features) and foretells log |F − x₀|. It is
fitted on training patients (clinfuse.training.error_fit), and calibrated on validation patients like any other std.

References: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, arXiv:2102.08501 (a second
predictor learns the first one's error, with its variance among the features); Yoo, Kweon, Learning Loss for Active
Learning, CVPR 2019. Lakshminarayanan, Pritzel, Blundell, arXiv:1612.01474 (several networks, averaged).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clinfuse.case import Case, FloatArray
from clinfuse.errors import InputError
from clinfuse.method.error_features import COUNT, MASKS, OWN, features, head_voxels
from clinfuse.method.variances import Variances

FILE = "error_head/model.safetensors"
"""Where a model folder keeps it."""
CLIP = 4.0
"""A feature counts as at most so many standard deviations from its mean: no voxel is further off than those seen."""

AT_ONCE = 2048
"""Rows answered together: what lies between two layers stays in the processor's cache, which halves the time."""


def scaled(rows: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    """Rows of features (n, COUNT) as the network takes them, in standard deviations from their mean.

    In the brain F is wrong by what it does itself, not by moved borders, and real tissue has another texture than
    simulated: there the surroundings are left out (set to their mean).
    """
    brain, bone, lesion = (rows[:, column] > 0 for column in MASKS)
    result = np.clip((rows - mean) / scale, -CLIP, CLIP)
    own = result[:, OWN].copy()
    result[brain & ~bone & ~lesion] = 0
    result[:, OWN] = own
    return np.asarray(result)


@dataclass(frozen=True, kw_only=True)
class ErrorHead:
    """Multilayer perceptrons of one shape with rectified linear units, in NumPy; the mean of their answers counts.

    One alone depends on its first weights and batches where real pairs differ from the cases of fitting.

    Attributes:
        mean, scale: (COUNT,) of the features in fitting.
        weights, biases: of each layer, (networks, out, in) and (networks, out); the last layer has one output.
        ceiling: the total variance that only one voxel in a thousand exceeded in fitting, image units².
    """

    mean: FloatArray
    scale: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
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
        networks = list(zip(zip(*self.weights, strict=True), zip(*self.biases, strict=True), strict=True))
        result = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            seen = scaled(rows[part], self.mean, self.scale)
            result[part] = np.mean([_answer(seen, *network) for network in networks], axis=0)
        return np.asarray(np.exp(np.minimum(result, 0)))

    def to_bytes(self) -> bytes:
        """A safetensors file's content; `from_bytes` gives the same head back, to the last bit."""
        arrays = {"mean": self.mean, "scale": self.scale, "ceiling": np.array([self.ceiling])}
        arrays |= {f"layers.{i}.weight": weight for i, weight in enumerate(self.weights)}
        arrays |= {f"layers.{i}.bias": bias for i, bias in enumerate(self.biases)}
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> ErrorHead:
        """The head that `to_bytes` wrote.

        Raises:
            InputError: no safetensors file, or arrays that do not fit together or are for other features.
        """
        try:
            tensors = load(data)
            count = sum(name.endswith(".weight") for name in tensors)
            head = cls(
                mean=tensors["mean"],
                scale=tensors["scale"],
                weights=tuple(tensors[f"layers.{i}.weight"] for i in range(count)),
                biases=tuple(tensors[f"layers.{i}.bias"] for i in range(count)),
                ceiling=float(tensors["ceiling"][0]),
            )
            head.expected(np.zeros((1, COUNT), dtype=np.float32))
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise InputError(
                "this is no error head of ours",
                expected=f"mean, scale, ceiling and layers for {COUNT} features",
                found=f"{type(error).__name__}: {error}",
                todo="run clinfuse calibrate again",
            ) from error
        return head


def _answer(seen: FloatArray, weights: Sequence[FloatArray], biases: Sequence[FloatArray]) -> FloatArray:
    """One network's logarithms (n,) for scaled rows (n, COUNT)."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        seen = seen @ weight.T
        seen += bias
        np.maximum(seen, 0, out=seen)
    return np.asarray((seen @ weights[-1].T + biases[-1])[:, 0])

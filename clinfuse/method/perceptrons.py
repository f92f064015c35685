"""Small multilayer perceptrons in NumPy: whoever fuses on a machine without a graphics card pays little for them.

Several of one shape answer together (Lakshminarayanan, Pritzel, Blundell, arXiv:1612.01474): one alone depends on its
first weights and batches where an image differs from those of fitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clinfuse.case import FloatArray

CLIP = 4.0
"""A feature counts as at most so many standard deviations from its mean: no voxel is further off than those seen."""
AT_ONCE = 2048
"""Rows answered together: what lies between two layers stays in the processor's cache, which halves the time."""


def scaled(rows: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    """Rows of features (n, features) as a network takes them, in standard deviations from their mean."""
    return np.asarray(np.clip((rows - mean) / scale, -CLIP, CLIP))


@dataclass(frozen=True, kw_only=True)
class Perceptrons:
    """Networks with rectified linear units and one output; the mean of their answers counts.

    Attributes:
        mean, scale: (features,) in fitting.
        weights, biases: of each layer, (networks, out, in) and (networks, out).
    """

    mean: FloatArray
    scale: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]

    def answer(self, rows: FloatArray) -> FloatArray:
        """Rows of features (n, features) → (n,) float32."""
        networks = list(zip(zip(*self.weights, strict=True), zip(*self.biases, strict=True), strict=True))
        result = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            seen = scaled(rows[part], self.mean, self.scale)
            result[part] = np.mean([_answer(seen, *network) for network in networks], axis=0)
        return result

    def arrays(self) -> dict[str, FloatArray]:
        """By name, for a file; `from_arrays` gives the same networks back."""
        arrays = {"mean": self.mean, "scale": self.scale}
        arrays |= {f"layers.{i}.weight": weight for i, weight in enumerate(self.weights)}
        return arrays | {f"layers.{i}.bias": bias for i, bias in enumerate(self.biases)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray]) -> Perceptrons:
        """The networks of `arrays`.

        Raises:
            KeyError: one is missing.
        """
        count = sum(name.endswith(".weight") for name in arrays)
        return cls(
            mean=arrays["mean"],
            scale=arrays["scale"],
            weights=tuple(arrays[f"layers.{i}.weight"] for i in range(count)),
            biases=tuple(arrays[f"layers.{i}.bias"] for i in range(count)),
        )


def _answer(seen: FloatArray, weights: Sequence[FloatArray], biases: Sequence[FloatArray]) -> FloatArray:
    """One network's answers (n,) to scaled rows (n, features)."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        seen = seen @ weight.T
        seen += bias
        np.maximum(seen, 0, out=seen)
    return np.asarray((seen @ weights[-1].T + biases[-1])[:, 0])

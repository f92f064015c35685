"""Wavelet fusion: the stronger coefficient in every detail band, the mean of the coarsest (PyWavelets)."""

from __future__ import annotations

import numpy as np
import pywt

from clinfuse.case import Case, FloatArray
from clinfuse.presets import Preset

WAVELET = "sym4"
LEVELS = 3


def wavelet(case: Case, preset: Preset) -> FloatArray:
    """Slice-wise discrete wavelet fusion without masks; (D, H, W) in [0, 1].

    Reference: Li, Manjunath, Mitra 1995, Graph. Models Image Process. 57(3), choose-max rule per coefficient.
    """
    levels = max(1, min(LEVELS, pywt.dwt_max_level(min(case.shape[1:]), WAVELET)))
    x, y = (_decompose(image, levels) for image in (case.anatomy, case.companion))
    coarse = (x[0] + y[0]) / 2
    details = [tuple(map(_stronger, a, b)) for a, b in zip(x[1:], y[1:], strict=True)]
    fused = pywt.waverec2([coarse, *details], WAVELET, mode="symmetric", axes=(1, 2))
    height, width = case.shape[1:]
    return np.clip(fused[:, :height, :width], 0, 1).astype(np.float32)


def _decompose(image: FloatArray, levels: int) -> list:
    return list(pywt.wavedec2(image, WAVELET, mode="symmetric", level=levels, axes=(1, 2)))


def _stronger(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.where(np.abs(a) >= np.abs(b), a, b)

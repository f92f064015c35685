"""Feature mutual information: how much of the sources' local features F holds, in windows of 3×3 (FMI).

Convention of the authors' published program (Fast-FMI): in each window the feature values, scaled to their own
range, are read as a distribution over the window's nine places in column order; the joint distribution is estimated
from both marginals and their correlation between the Fréchet bounds (Nelsen), and the mutual information is
normalised by the mean of both entropies. A window equal in both images counts 1, a flat one against a textured
one nearly 0. Averaged over windows, both sources and slices. Features: "pixel" the greys themselves, "gradient"
the horizontal central difference, "wavelet" all four subbands of one level of the discrete Meyer wavelet.

Reference: Haghighat, Aghagolzadeh, Seyedarabi 2011, Comput. Electr. Eng. 37(5); Haghighat, Razian 2014, AICT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clinfuse.errors import ConfigError
from clinfuse.metrics.checks import same_shape
from clinfuse.metrics.field import as_stack, content_slices, to_greys

Greys = NDArray[np.float64]
WINDOW = 3
PLACES = WINDOW * WINDOW
AT_ONCE = 512  # windows, so that the 81 joint probabilities of each stay in the cache
FEATURES = ("pixel", "gradient", "wavelet")


def fmi(
    fused: NDArray[Any],
    anatomy: NDArray[Any],
    companion: NDArray[Any],
    feature: str = "pixel",
    *,
    slices: int | None = None,
) -> float:
    """FMI of one fused image or volume.

    Args:
        fused, anatomy, companion: (D, H, W) or (H, W), values in [0, 1]; measured on 8-bit greys.
        feature: one of `FEATURES`.
        slices: at most this many slices with content, evenly spaced; None is all of them.

    Returns:
        In [0, 1]; NaN where no slice has content.

    Raises:
        GeometryError: shapes differ. InputError: values outside [0, 1]. ConfigError: an unknown feature.
    """
    if feature not in FEATURES:
        raise ConfigError("no such feature", expected=f"one of {FEATURES}", found=repr(feature))
    same_shape(fused=fused, anatomy=anatomy, companion=companion)
    f, a, c = (
        as_stack(*named) for named in (("fused", fused), ("anatomy", anatomy), ("companion", companion))
    )
    keep = content_slices(a, c, slices)
    if not keep.size:
        return float("nan")
    extract = _EXTRACT[feature]
    values = []
    for index in keep:
        own = extract(to_greys(f[index]))
        values += [window_information(extract(to_greys(x[index])), own).mean() for x in (a, c)]
    return float(np.mean(values))


def window_information(source: Greys, fused: Greys) -> Greys:
    """Normalised mutual information of every 3×3 window of two (H, W) feature images, (H−2, W−2)."""
    x, y = _windows(source), _windows(fused)
    shape = (source.shape[0] - WINDOW + 1, source.shape[1] - WINDOW + 1)
    equal = (x == y).all(axis=0)
    result = np.ones(equal.shape)
    todo = np.flatnonzero(~equal)
    for start in range(0, todo.size, AT_ONCE):
        part = todo[start : start + AT_ONCE]
        result[part] = _normalised_information(x[:, part], y[:, part])
    return result.reshape(shape)


def _windows(image: Greys) -> Greys:
    """(9, N) values of every window, column by column."""
    windows = sliding_window_view(image, (WINDOW, WINDOW))
    return np.ascontiguousarray(windows.transpose(3, 2, 0, 1).reshape(PLACES, -1))


def _normalised_information(x: Greys, y: Greys) -> Greys:
    """2·MI/(H(x)+H(y)) of N pairs of windows, (9, N) each → (N,)."""
    p, flat_p = _distribution(x)
    q, flat_q = _distribution(y)
    cov = ((p - p.mean(0)) * (q - q.mean(0))).sum(0)
    norm = p.std(0) * q.std(0) * PLACES
    usable = ~(flat_p | flat_q) & (norm > 0)
    correlation = np.divide(cov, norm, out=np.zeros_like(cov), where=usable)
    h_p, h_q = _entropy(p), _entropy(q)
    information = h_p + h_q - _joint_entropy(p, q, correlation)
    total = h_p + h_q
    return np.divide(2 * information, total, out=np.zeros_like(total), where=total > 0)


def _distribution(x: Greys) -> tuple[Greys, NDArray[np.bool_]]:
    """Windows scaled to their own range and to sum 1; flat ones are uniform."""
    low, high = x.min(0), x.max(0)
    flat = high == low
    scaled = np.where(flat, 1.0, (x - low) / np.where(flat, 1.0, high - low))
    return scaled / scaled.sum(0), flat


def _joint_entropy(p: Greys, q: Greys, correlation: Greys) -> Greys:
    """Entropy in bit of the joint distribution between independence and the Fréchet bound of the sign."""
    cdf_p, cdf_q = p.cumsum(0)[:, None], q.cumsum(0)[None]
    rising = correlation >= 0
    bound = np.where(rising, np.minimum(cdf_p, cdf_q), np.maximum(cdf_p + cdf_q - 1, 0))
    spread = _place_deviation(p) * _place_deviation(q)
    reach = np.divide(
        (bound - cdf_p * cdf_q).sum(axis=(0, 1)), spread, out=np.zeros_like(spread), where=spread > 0
    )
    share = np.divide(correlation, reach, out=np.zeros_like(reach), where=reach != 0)
    extreme = np.diff(np.diff(bound, axis=0, prepend=0), axis=1, prepend=0)
    joint = share * extreme + (1 - share) * p[:, None] * q[None]
    return _entropy(joint.reshape(PLACES * PLACES, -1))


def _place_deviation(p: Greys) -> Greys:
    """Standard deviation of the place (1 … 9) under each distribution."""
    place = np.arange(1, PLACES + 1)[:, None]
    mean = (place * p).sum(0)
    return np.sqrt(np.maximum((place**2 * p).sum(0) - mean**2, 0))


def _entropy(p: Greys) -> Greys:
    """−Σ p·log₂|p| per column; the estimate may leave tiny negative probabilities, which count so."""
    size = np.abs(p)
    return -(p * np.log2(np.where(size > 0, size, 1.0))).sum(0)


def _wavelet(image: Greys) -> Greys:
    import pywt

    mean, (rows, columns, diagonal) = pywt.dwt2(image, "dmey")
    return np.block([[mean, rows], [columns, diagonal]])


_EXTRACT: dict[str, Callable[[Greys], Greys]] = {
    "pixel": lambda image: image,
    "gradient": lambda image: np.gradient(image, axis=1),
    "wavelet": _wavelet,
}

"""The image-fusion field's metrics EN, SD, SF, AG, MI, SCD, VIF, Q^AB/F and SSIM, in its usual conventions.

The field's evaluators disagree with each other; these are the conventions here, equal to those of the evaluator
most published tables of MRI-CT fusion use. Images are 8-bit greys 0 … 255 (F in [0, 1] is multiplied by 255 and
rounded), slices are measured one by one in the axial plane and averaged.

| metric | unit | convention |
|--------|------|------------|
| EN     | bit  | entropy of F's 256-bin histogram |
| SD     | grey | population standard deviation of F |
| SF     | grey | √(mean squared horizontal + mean squared vertical first difference) |
| AG     | grey | mean of √((gx² + gy²)/2), central differences |
| MI     | nat  | MI(F, I_M) + MI(F, I_C), 256×256 joint histograms |
| SCD    | 1    | corr(I_M, F − I_C) + corr(I_C, F − I_M) |
| VIF    | 1    | pixel-domain VIF(I_M, F) + VIF(I_C, F), 4 scales, σ_n² = 2 |
| Qabf   | 1    | Xydeas-Petrović edge preservation, see `clinfuse.metrics.edges` |
| SSIM   | 1    | SSIM(F, I_M) + SSIM(F, I_C), uniform 7×7 window, sample covariance, data range 2 on 0 … 255 |

The data range of the SSIM is an accident of the field (a default for floats); 255 would give about 0.08 more.
Whole-image metrics reward pasting and copying: they are reported beside ROI metrics, never instead of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from clinfuse.errors import ConfigError
from clinfuse.metrics.checks import as_image, same_shape
from clinfuse.metrics.edges import qabf
from clinfuse.metrics.vif import vif

Greys = NDArray[np.float64]
FIELD = ("EN", "SD", "SF", "AG", "MI", "SCD", "VIF", "Qabf", "SSIM")
FIELD_SSIM_RANGE = 2.0
CONTENT_SHARE = 0.02
SLICES_AT_ONCE = 8  # so that memory does not grow with the volume


def field_metrics(
    fused: NDArray[Any],
    anatomy: NDArray[Any],
    companion: NDArray[Any],
    *,
    names: Sequence[str] = FIELD,
    slices: int | None = None,
) -> dict[str, float]:
    """The field's metrics of one fused image or volume.

    Args:
        fused, anatomy, companion: (D, H, W) or (H, W), values in [0, 1]; whole images, without mask.
        names: which of `FIELD` to compute.
        slices: at most this many slices with content, evenly spaced; None is all of them.

    Returns:
        The mean over slices by name, units as in the module's table; NaN where no slice has content.

    Raises:
        GeometryError: shapes differ. InputError: values outside [0, 1]. ConfigError: an unknown name.
    """
    unknown = sorted(set(names) - set(FIELD))
    if unknown:
        raise ConfigError("no such field metric", expected=f"some of {FIELD}", found=", ".join(unknown))
    same_shape(fused=fused, anatomy=anatomy, companion=companion)
    a, c = as_stack("anatomy", anatomy), as_stack("companion", companion)
    f = as_stack("fused", fused)
    keep = content_slices(a, c, slices)
    if not keep.size:
        return dict.fromkeys(names, float("nan"))
    values: dict[str, list[Greys]] = {name: [] for name in names}
    for start in range(0, keep.size, SLICES_AT_ONCE):
        part = keep[start : start + SLICES_AT_ONCE]
        greys = to_greys(f[part]), to_greys(a[part]), to_greys(c[part])
        for name in names:
            values[name].append(_MEASURES[name](*greys))
    return {name: float(np.concatenate(parts).mean()) for name, parts in values.items()}


def as_stack(name: str, image: NDArray[Any]) -> NDArray[np.float32]:
    """A checked image as (D, H, W); a single slice gets D = 1."""
    array = as_image(name, image)
    return array[None] if array.ndim == 2 else array


def to_greys(image: NDArray[np.float32]) -> Greys:
    """Greys 0 … 255, whole numbers, of an image in [0, 1], same shape."""
    return np.rint(image.astype(np.float64) * 255.0)


def content_slices(
    a: NDArray[np.float32], c: NDArray[np.float32], most: int | None = None
) -> NDArray[np.intp]:
    """Indices of slices where at least 2 % of the pixels of each source differ from its commonest grey.

    Args:
        a, c: (D, H, W) in [0, 1].
        most: at most this many, evenly spaced over those found.
    """
    found = np.flatnonzero([_content(x) and _content(y) for x, y in zip(a, c, strict=True)])
    if most is None or found.size <= most:
        return found
    return found[np.unique(np.linspace(0, found.size - 1, most).round().astype(int))]


def _content(image: NDArray[np.float32]) -> bool:
    counts = np.bincount(to_greys(image).astype(np.uint8).ravel())
    return bool(counts.max() <= (1.0 - CONTENT_SHARE) * image.size)


def entropy(f: Greys) -> Greys:
    """EN in bit, per slice of (D, H, W) greys."""
    return np.array([_entropy(np.bincount(s.astype(np.uint8).ravel())) / np.log(2) for s in f])


def spatial_frequency(f: Greys) -> Greys:
    """SF in greys, per slice. Reference: Eskicioglu, Fisher 1995, IEEE Trans. Commun. 43(12)."""
    rows = np.square(np.diff(f, axis=2)).mean(axis=(1, 2))
    columns = np.square(np.diff(f, axis=1)).mean(axis=(1, 2))
    return np.sqrt(rows + columns)


def average_gradient(f: Greys) -> Greys:
    """AG in greys, per slice."""
    gy, gx = np.gradient(f, axis=(1, 2))
    return np.sqrt((gx**2 + gy**2) / 2).mean(axis=(1, 2))


def mutual_information(f: Greys, source: Greys) -> Greys:
    """MI(F, I) in nat, per slice, from the joint histogram of 256×256 bins."""
    values = []
    for x, y in zip(f.astype(np.intp), source.astype(np.intp), strict=True):
        joint = np.bincount((256 * x + y).ravel(), minlength=65536).reshape(256, 256)
        values.append(_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint))
    return np.array(values)


def differences_correlation(f: Greys, a: Greys, c: Greys) -> Greys:
    """SCD, per slice: what F adds to one source should be the other. Reference: Aslantas, Bendes 2015."""
    return _correlation(a, f - c) + _correlation(c, f - a)


def field_ssim(f: Greys, source: Greys, data_range: float = FIELD_SSIM_RANGE) -> Greys:
    """SSIM per slice in the field's convention: uniform 7×7, sample covariance, borders of 3 pixels left out."""
    size = (0, 7, 7)

    def mean(x: Greys) -> Greys:
        return np.asarray(uniform_filter(x, size)[:, 3:-3, 3:-3])

    sample = 49 / 48
    mu_f, mu_s = mean(f), mean(source)
    var_f = sample * (mean(f * f) - mu_f**2)
    var_s = sample * (mean(source * source) - mu_s**2)
    cov = sample * (mean(f * source) - mu_f * mu_s)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mu_f * mu_s + c1) * (2 * cov + c2)
    return np.asarray((top / ((mu_f**2 + mu_s**2 + c1) * (var_f + var_s + c2))).mean(axis=(1, 2)))


def _entropy(counts: NDArray[Any]) -> float:
    """Shannon entropy in nat of a histogram."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _correlation(x: Greys, y: Greys) -> Greys:
    """Pearson correlation per slice; 0 where one of them is flat."""
    x = x - x.mean(axis=(1, 2), keepdims=True)
    y = y - y.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((x**2).sum(axis=(1, 2)) * (y**2).sum(axis=(1, 2)))
    return np.asarray(np.divide((x * y).sum(axis=(1, 2)), norm, out=np.zeros_like(norm), where=norm > 0))


_MEASURES: dict[str, Callable[[Greys, Greys, Greys], Greys]] = {
    "EN": lambda f, a, c: entropy(f),
    "SD": lambda f, a, c: f.std(axis=(1, 2)),
    "SF": lambda f, a, c: spatial_frequency(f),
    "AG": lambda f, a, c: average_gradient(f),
    "MI": lambda f, a, c: mutual_information(f, a) + mutual_information(f, c),
    "SCD": differences_correlation,
    "VIF": lambda f, a, c: vif(a, f) + vif(c, f),
    "Qabf": qabf,
    "SSIM": lambda f, a, c: field_ssim(f, a) + field_ssim(f, c),
}

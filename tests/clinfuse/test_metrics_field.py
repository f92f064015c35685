"""The field's metrics and FSIM against independent implementations on real pairs, closed forms elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from clinfuse.case import Case
from clinfuse.errors import ConfigError, GeometryError, InputError
from clinfuse.metrics import FIELD, field_metrics, fmi, roi_psnr
from clinfuse.metrics.field import content_slices, field_ssim, to_greys
from clinfuse.metrics.fmi import FEATURES, window_information
from clinfuse.metrics.fsim import fsim_to_sources
from clinfuse.metrics.vif import vif

WITHIN = dict.fromkeys(FIELD, 1e-9) | {"SSIM255": 1e-9, "FSIM": 5e-5, "PSNR": 1e-4}


@pytest.fixture(scope="session")
def reference(data_root: Path) -> Path:
    """Folder with metrics.json and pairs/*.npz beside the data, or skip."""
    folder = data_root.parent / "reference"
    if not (folder / "metrics.json").is_file():
        pytest.skip("no reference values beside the real images")
    return folder


@pytest.mark.real
def test_against_independent_values_on_real_pairs(reference: Path) -> None:
    pairs = json.loads((reference / "metrics.json").read_text(encoding="utf-8"))["pairs"]
    assert len(pairs) >= 12
    for name, expected in pairs.items():
        arrays = np.load(reference / "pairs" / f"{name}.npz")
        f, a, c = (arrays[k].astype(np.float32) / 255 for k in ("fused", "anatomy", "companion"))
        got = field_metrics(f, a, c)
        greys = [to_greys(x)[None] for x in (f, a, c)]
        got["SSIM255"] = float((field_ssim(greys[0], greys[1], 255) + field_ssim(greys[0], greys[2], 255))[0])
        for metric, value in got.items():
            assert value == pytest.approx(expected[metric], abs=WITHIN[metric]), (name, metric)
        similarity = fsim_to_sources(f, [a, c])
        for source, image, value in (("anatomy", a, similarity[0]), ("companion", c, similarity[1])):
            assert value == pytest.approx(expected[f"FSIM_{source}"], abs=WITHIN["FSIM"])
            assert roi_psnr(f, image) == pytest.approx(expected[f"PSNR_{source}"], abs=WITHIN["PSNR"])


def noisy(seed: int, shape: tuple[int, ...] = (3, 48, 56)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_closed_forms_on_a_chessboard() -> None:
    """Two greys in equal number: 1 bit, known deviation, frequency and information."""
    board = (np.indices((40, 40)).sum(0) % 2).astype(np.float32)
    values = field_metrics(board, board, board)
    assert values["EN"] == pytest.approx(1.0)
    assert values["SD"] == pytest.approx(127.5)
    assert values["SF"] == pytest.approx(255 * np.sqrt(2))
    assert values["AG"] == pytest.approx(2 * 255 * (2 / 40) * (1 - 2 / 40) / np.sqrt(2) + 255 * (2 / 40) ** 2)
    assert values["MI"] == pytest.approx(2 * np.log(2))
    assert values["SCD"] == 0.0, "nothing was added to either source"
    assert values["VIF"] == pytest.approx(2.0) and values["SSIM"] == pytest.approx(2.0)


def test_scd_of_a_sum_of_disjoint_sources_is_two() -> None:
    a, c = np.zeros((1, 40, 40), np.float32), np.zeros((1, 40, 40), np.float32)
    a[:, 5:20, 5:30], c[:, 25:35, 5:30] = noisy(1, (15, 25)) / 2, noisy(2, (10, 25)) / 2
    values = field_metrics(a + c, a, c, names=["SCD"])
    assert values["SCD"] == pytest.approx(2.0, abs=1e-3)


def test_ssim_is_scikit_images_at_both_ranges() -> None:
    f, a = (np.rint(noisy(s, (1, 40, 52)) * 255).astype(np.float64) for s in (1, 2))
    for data_range in (2.0, 255.0):
        expected = structural_similarity(f[0], a[0], data_range=data_range)
        assert field_ssim(f, a, data_range)[0] == pytest.approx(expected, abs=1e-9)


def test_vif_of_scaled_contrast_and_small_slices() -> None:
    image = np.rint(noisy(3, (1, 64, 64)) * 127)
    assert vif(image, image)[0] == pytest.approx(1.0)
    assert vif(image, 2 * image)[0] > 1.0 > vif(image, image / 2)[0] > 0.5
    assert np.isfinite(vif(image[:, :20, :20], image[:, :20, :20] / 2))
    assert vif(image * 0, image)[0] == 1.0


def test_slices_are_measured_one_by_one() -> None:
    f, a, c = noisy(1), noisy(2), noisy(3)
    together = field_metrics(f, a, c)
    single = [field_metrics(f[i], a[i], c[i]) for i in range(len(f))]
    for name in FIELD:
        assert together[name] == pytest.approx(np.mean([s[name] for s in single]))


def test_blank_slices_and_subsampling() -> None:
    a, c = noisy(1, (9, 20, 20)), noisy(2, (9, 20, 20))
    a[0], c[8] = 0, 0.5
    assert content_slices(a, c).tolist() == list(range(1, 8))
    assert content_slices(a, c, 3).tolist() == [1, 4, 7]
    blank = np.zeros((4, 20, 20), np.float32)
    assert all(np.isnan(v) for v in field_metrics(blank, blank, blank).values())
    assert np.isnan(fmi(blank, blank, blank))


def window_by_hand(a: np.ndarray, f: np.ndarray) -> float:
    """FMI of one 3×3 window, element by element, as the authors' program goes."""
    if (a == f).all():
        return 1.0
    p, q = (
        (np.ones(9) if w.max() == w.min() else (w.T.ravel() - w.min()) / (w.max() - w.min())) for w in (a, f)
    )
    p, q = p / p.sum(), q / q.sum()
    place = np.arange(1, 10)
    sp, sq = (np.sqrt(max((place**2 * d).sum() - (place * d).sum() ** 2, 0)) for d in (p, q))
    flat = a.max() == a.min() or f.max() == f.min()
    corr = 0.0 if flat else np.corrcoef(p, q)[0, 1]
    bound = np.zeros((10, 10))
    for i in range(9):
        for j in range(9):
            u, v = q[: i + 1].sum(), p[: j + 1].sum()
            bound[i + 1, j + 1] = min(u, v) if corr >= 0 else max(u + v - 1, 0)
    independent = np.outer(q.cumsum(), p.cumsum())
    reach = (bound[1:, 1:] - independent).sum() / (sp * sq)
    phi = corr / reach if corr else 0.0
    joint = phi * np.diff(np.diff(bound, axis=0), axis=1) + (1 - phi) * np.outer(q, p)
    entropies = [-sum(x * np.log2(abs(x)) for x in d.ravel() if x != 0) for d in (p, q, joint)]
    return 2 * (entropies[0] + entropies[1] - entropies[2]) / (entropies[0] + entropies[1])


def test_fmi_windows_by_hand() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 20, (8, 9)).astype(float)
    f = np.clip(a + rng.integers(-5, 5, a.shape), 0, 255).astype(float)
    f[:3, :3], a[4:7, 4:7] = 7, 3
    f[5:, :3] = a[5:, :3]
    got = window_information(a, f)
    expected = [
        [window_by_hand(a[i : i + 3, j : j + 3], f[i : i + 3, j : j + 3]) for j in range(7)] for i in range(6)
    ]
    assert np.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("feature", FEATURES)
def test_fmi_of_a_copy_and_of_noise(feature: str, tiny_case: Case) -> None:
    a = tiny_case.anatomy
    assert fmi(a, a, a, feature, slices=2) == pytest.approx(1.0)
    assert fmi(noisy(4, a.shape), a, a, feature, slices=2) < 0.6


def test_bad_input_is_refused(tiny_case: Case) -> None:
    a = tiny_case.anatomy
    with pytest.raises(GeometryError, match=r"\(12, 32, 28\)"):
        field_metrics(a, a, a[1:])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        field_metrics(a * 255, a, a)
    with pytest.raises(ConfigError, match="LPIPS"):
        field_metrics(a, a, a, names=["LPIPS"])
    with pytest.raises(ConfigError, match="dct"):
        fmi(a, a, a, "dct")

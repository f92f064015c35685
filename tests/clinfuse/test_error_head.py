"""The error head: features that no cut changes, errors foretold on cases not seen, and doubt that is never lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from scipy.stats import spearmanr

from clinfuse.case import Case
from clinfuse.errors import InputError
from clinfuse.method import error_features
from clinfuse.method.error_features import COUNT, features, head_voxels
from clinfuse.method.error_head import ErrorHead
from clinfuse.method.variances import Variances
from clinfuse.training import error_fit
from clinfuse.training.error_fit import NETWORKS, error_rows, fit_error_head

SHAPE = (14, 30, 26)
AFFINE = np.array([[1.0, 0.2, 0, -9], [-0.2, 1.1, 0, 4], [0, 0, 2.5, 7], [0, 0, 0, 1]])
SHIFT_MM = 0.7


def smooth(rng: np.random.Generator, width: float = 1.5) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(rng.normal(size=SHAPE), width)
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def fused_case(seed: int) -> tuple[Case, np.ndarray, Variances, np.ndarray]:
    """A case on an oblique anisotropic grid, F, variances and an error: the companion's slope along H times a shift in
    bone, Gaussian of the aleatoric standard deviation elsewhere."""
    rng = np.random.default_rng(seed)
    masks = {name: np.zeros(SHAPE, np.uint8) for name in ("brain", "bone", "lesion")}
    masks["brain"][:, :14], masks["bone"][:, 14:28], masks["lesion"][5:9, 3:9, 4:12] = 1, 1, 1
    case = Case(case_id=f"c{seed}", anatomy=smooth(rng), companion=smooth(rng), affine=AFFINE, **masks)
    fused = np.where(masks["bone"] > 0, case.companion, case.anatomy)
    aleatoric, epistemic, registration = (rng.gamma(1.0, 1e-4, SHAPE).astype(np.float32) for _ in range(3))
    slope = np.gradient(case.companion, case.spacing[1], axis=1) * SHIFT_MM
    noise = np.sqrt(aleatoric) * rng.normal(size=SHAPE)
    error = np.abs(np.where(masks["bone"] > 0, slope, noise)).astype(np.float32)
    return case, fused, Variances(aleatoric, epistemic, registration), error


def rows_of(seeds: range) -> list[error_features.NDArray]:
    everywhere = np.ones(SHAPE, bool)
    made = (fused_case(seed) for seed in seeds)
    return [error_rows(*parts, everywhere, np.random.default_rng(n)) for n, parts in enumerate(made)]


def rows_at(case: Case, fused: np.ndarray, variances: Variances, where: np.ndarray) -> np.ndarray:
    return np.concatenate([rows for _, rows in features(case, fused, variances, where)])


@pytest.fixture(scope="module")
def head() -> ErrorHead:
    return fit_error_head(rows_of(range(4)))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting in few steps, where how well it fits does not matter."""
    monkeypatch.setattr(error_fit, "LEAST_STEPS", 20)
    monkeypatch.setattr(error_fit, "EPOCHS", 0)


def test_features_do_not_depend_on_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    case, fused, variances, _ = fused_case(0)
    where = np.random.default_rng(1).random(SHAPE) < 0.3
    where[3:6] = False
    whole = np.concatenate([rows for _, rows in features(case, fused, variances, where)])
    monkeypatch.setattr(error_features, "SLAB", 3)
    cuts = list(features(case, fused, variances, where))
    assert whole.shape == (where.sum(), COUNT) and len(cuts) == 4 and cuts[1][0] == slice(6, 9)
    np.testing.assert_allclose(np.concatenate([rows for _, rows in cuts]), whole, atol=1e-6)


def test_features_are_per_millimetre() -> None:
    """A ramp of 0.01 per mm along H has that slope whatever the spacing, in both windows and at the voxel."""
    case, _, variances, _ = fused_case(0)
    ramp = (0.3 + 0.01 * case.spacing[1] * np.arange(SHAPE[1], dtype=np.float32))[None, :, None]
    ramp = np.broadcast_to(ramp, SHAPE).copy()
    middle = np.zeros(SHAPE, bool)
    middle[7, 15, 13] = True
    sloped = Case(**{**vars(case), "anatomy": ramp, "companion": ramp})
    ((_, row),) = features(sloped, ramp, variances, middle)
    slopes = np.exp(row[0][[2, 5, 12, 15, 21, 24]]) - error_features.FLOOR
    np.testing.assert_allclose(slopes, 0.01, rtol=1e-3)
    np.testing.assert_allclose(row[0][[6, 16]], 0.5, rtol=1e-3, err_msg="they agree, as steep as the floor")


def test_features_tell_what_aligning_found() -> None:
    """The last two of a voxel: motion left alone, gain of information; nothing of a pair taken as it is."""
    case, fused, variances, _ = fused_case(0)
    found = {"used": False, "motion_mm": 0.7, "doubt_mm": 0.3, "information": 1.2, "information_before": 1.0}
    where = np.zeros(SHAPE, bool)
    where[7, 15, 13] = True
    for told, wanted in (
        (None, (0, 0)),
        (found, (0.7, 0.2)),
        ({**found, "used": True, "motion_mm": 2.0}, (0, 0.2)),
    ):
        seen = Case(**{**vars(case), "attrs": {} if told is None else {"alignment": told}})
        ((_, row),) = features(seen, fused, variances, where)
        np.testing.assert_allclose(row[0, -2:], wanted, atol=1e-6)


def test_errors_of_unseen_cases_are_foretold(head: ErrorHead) -> None:
    case, fused, variances, error = fused_case(99)
    told, plain = head.std(case, fused, variances), np.sqrt(variances.total)
    assert told.shape == SHAPE and told.dtype == np.float32 and (told >= 0).all()
    bone, brain = case.bone > 0, (case.brain > 0) & (case.lesion == 0)
    assert spearmanr(told[bone], error[bone]).statistic > 0.8
    assert abs(spearmanr(plain[bone], error[bone]).statistic) < 0.1, "the variances know nothing of it"
    assert spearmanr(told[brain], error[brain]).statistic > spearmanr(plain[brain], error[brain]).statistic


def test_a_single_slice_is_foretold_too(head: ErrorHead) -> None:
    case, fused, variances, error = fused_case(99)
    cut = slice(6, 7)
    own = Variances(*(part[cut] for part in variances))
    told = head.std(case.slices(6, 7), fused[cut], own)
    bone = case.bone[cut] > 0
    assert spearmanr(told[bone], error[cut][bone]).statistic > 0.6


def test_in_the_brain_neither_the_surroundings_nor_the_companion_count(head: ErrorHead) -> None:
    case, fused, variances, _ = fused_case(99)
    for name, where in {"brain": (case.brain > 0) & (case.lesion == 0), "bone": case.bone > 0}.items():
        rows = rows_at(case, fused, variances, where)
        assert (error_features.only_brain(rows) == (name == "brain")).all()
        others = rows + np.float32(0.3)
        kept = [*error_features.IN_BRAIN, *error_features.MASKS]
        others[:, kept] = rows[:, kept]
        assert np.allclose(head.expected(others), head.expected(rows)) == (name == "brain")
        doubted = rows.copy()
        doubted[:, error_features.IN_BRAIN[1]] += 0.5
        assert not np.allclose(head.expected(doubted), head.expected(rows))


def test_each_voxel_is_answered_by_its_own_networks(head: ErrorHead) -> None:
    """A lesion lies in the brain and is not the brain's."""
    case, fused, variances, _ = fused_case(99)
    rows = rows_at(case, fused, variances, np.ones(SHAPE, bool))
    brain = ((case.brain > 0) & (case.lesion == 0) & (case.bone == 0)).ravel()
    np.testing.assert_array_equal(error_features.only_brain(rows), brain)
    told = np.log(head.expected(rows))
    np.testing.assert_allclose(told[~brain], np.minimum(head.elsewhere.answer(rows)[~brain], 0), atol=1e-4)
    of_brain = head.brain.answer(rows[:, error_features.IN_BRAIN])
    np.testing.assert_allclose(told[brain], np.minimum(of_brain[brain], 0), atol=1e-4)


def test_cases_that_are_brain_alone_or_without_masks_teach_all_networks(brief: None) -> None:
    for name in ("brain", "none"):
        case, fused, variances, error = fused_case(0)
        masks = {mask: np.zeros(SHAPE, np.uint8) for mask in case.masks}
        if name == "brain":
            masks["brain"][:] = 1
        alike = replace(case, **masks)
        rows = error_rows(alike, fused, variances, error, np.ones(SHAPE, bool), np.random.default_rng(0))
        taught = fit_error_head([rows])
        told = taught.std(case, fused, variances)
        assert np.isfinite(told).all() and (told > 0).all()


def test_dropout_keeps_the_mean_and_is_for_fitting_alone() -> None:
    layer, rows = error_fit._Dropout(0.25), torch.ones(error_fit.BATCH, 50)
    seen = layer(rows).reshape(-1, error_fit.ALIKE, 50)
    assert (seen == seen[:, :1]).all() and seen.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(seen.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(rows), rows)


def test_the_same_rows_and_seed_give_the_same_head(brief: None) -> None:
    one, again, other = (fit_error_head(rows_of(range(1)), seed=seed).to_bytes() for seed in (3, 3, 4))
    assert one == again != other


def test_variance_beyond_what_fitting_saw_is_added_whole_and_air_keeps_its_own(
    error_head: Callable[..., ErrorHead],
) -> None:
    case, fused, variances, _ = fused_case(3)
    images = {"anatomy": case.anatomy.copy(), "companion": case.companion.copy()}
    for image in images.values():
        image[:, 28:] = 0.0
    case = Case(**{**vars(case), **images})
    silent = replace(error_head(0.01), ceiling=2e-4)
    told, total, inside = silent.std(case, fused, variances), variances.total, head_voxels(case)
    assert not inside[:, 28:].any() and (total[inside] > 2e-4).any()
    wanted = np.sqrt(1e-4 + np.maximum(total - 2e-4, 0))
    np.testing.assert_allclose(told[inside], wanted[inside], rtol=1e-5)
    np.testing.assert_allclose(told[~inside], np.sqrt(total)[~inside], rtol=1e-6)


def test_the_file_gives_the_same_head_back_and_foreign_ones_are_refused(head: ErrorHead) -> None:
    data = head.to_bytes()
    again = ErrorHead.from_bytes(data)
    assert again.to_bytes() == data and again.ceiling == head.ceiling
    part = head.elsewhere
    narrow = replace(
        part, mean=part.mean[:5], scale=part.scale[:5], weights=(part.weights[0][..., :5], *part.weights[1:])
    )
    uneven = replace(part, weights=(part.weights[0][1:], *part.weights[1:]))
    foreign = [replace(head, elsewhere=other).to_bytes() for other in (narrow, uneven, head.brain)]
    of_before = save({**part.arrays(), "ceiling": np.array([0.1])})
    for broken in (data[:100], b"{}", of_before, *foreign):
        with pytest.raises(InputError, match="run clinfuse calibrate again"):
            ErrorHead.from_bytes(broken)


def test_the_mean_of_all_networks_answers(head: ErrorHead) -> None:
    rows = rows_at(*fused_case(99)[:3], np.ones(SHAPE, bool))
    for part, columns in ((head.elsewhere, slice(None)), (head.brain, error_features.IN_BRAIN)):
        seen, count = rows[:, columns], len(part.weights[0])
        each = [
            replace(
                part,
                weights=tuple(w[n : n + 1] for w in part.weights),
                biases=tuple(b[n : n + 1] for b in part.biases),
            ).answer(seen)
            for n in range(count)
        ]
        assert count == NETWORKS and all(one.shape == (len(rows),) for one in each)
        assert not any(np.allclose(each[0], other) for other in each[1:])
        np.testing.assert_allclose(part.answer(seen), np.mean(each, axis=0), rtol=1e-5, atol=1e-5)


def test_what_never_varied_in_fitting_counts_for_nothing(head: ErrorHead) -> None:
    """These cases were taken as they are: what aligning found is 0 in all of them."""
    case, fused, variances, _ = fused_case(99)
    rows = rows_at(case, fused, variances, case.bone > 0)
    others = rows.copy()
    others[:, -2:] = (2.0, 0.3)
    np.testing.assert_array_equal(head.expected(others), head.expected(rows))


def test_cases_without_a_known_voxel_teach_nothing() -> None:
    nowhere = error_rows(*fused_case(0), np.zeros(SHAPE, bool), np.random.default_rng(0))
    assert nowhere.features.shape == (0, COUNT)
    with pytest.raises(InputError, match="nothing to learn from"):
        fit_error_head([nowhere, nowhere])

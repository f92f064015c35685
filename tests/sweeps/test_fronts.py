"""Fronts by closed form: staircases, sphere octants, knees worked out by hand, NaN and infinities."""

from __future__ import annotations

import numpy as np
import pytest
from clinfuse_sweeps.fronts import (
    attainment,
    common_reference,
    coverage,
    hypervolume,
    hypervolume_interval,
    knee,
    non_dominated,
    staircase,
    usable,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from clinfuse.errors import InputError


def stairs(n: int) -> np.ndarray:
    """Points (i, n−1−i): every one non-dominated."""
    i = np.arange(n, dtype=float)
    return np.stack([i, n - 1 - i], axis=1)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_hypervolume_of_a_staircase(n: int) -> None:
    # column i of the dominated region up to (n, n) is i + 1 high
    assert hypervolume(stairs(n), np.array([n, n], dtype=float)) == pytest.approx(n * (n + 1) / 2)


@pytest.mark.parametrize("n", [2, 4, 6])
def test_hypervolume_of_a_3d_staircase_equals_counting_cubes(n: int) -> None:
    points = np.array([(i, j, n - 1 - i - j) for i in range(n) for j in range(n - i)], dtype=float)
    cubes = np.argwhere(np.ones((n, n, n)))
    counted = sum((points <= cube).all(axis=1).any() for cube in cubes)
    assert hypervolume(points, np.full(3, n, dtype=float)) == pytest.approx(counted)


def test_points_beyond_the_reference_nan_and_infinity_add_nothing() -> None:
    front = stairs(3)
    extra = np.array([[4.0, -1.0], [np.nan, 0.0], [np.inf, 0.0], [0.0, -np.inf]])
    reference = np.array([3.0, 3.0])
    assert hypervolume(np.concatenate([front, extra]), reference) == hypervolume(front, reference)
    assert hypervolume(extra, reference) == 0
    assert hypervolume(np.empty((0, 2)), reference) == 0


def test_a_reference_that_is_not_finite_or_of_another_length_is_refused() -> None:
    for reference in (np.array([np.nan, 1.0]), np.array([1.0, 1.0, 1.0])):
        with pytest.raises(InputError, match="reference point"):
            hypervolume(stairs(2), reference)


def test_non_dominated_keeps_twins_and_leaves_nan_out() -> None:
    points = np.array([[0, 1], [1, 0], [1, 1], [0, 1], [np.nan, -9], [-np.inf, 0]], dtype=float)
    assert non_dominated(points).tolist() == [True, True, False, True, False, False]
    assert not non_dominated(np.full((2, 2), np.nan)).any()
    assert non_dominated(np.empty((0, 2))).shape == (0,)


finite = st.floats(-10, 10, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=20))
def test_non_dominated_equals_the_definition(rows: list[tuple[float, float, float]]) -> None:
    points = np.array(rows)
    slow = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert non_dominated(points).tolist() == slow


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=15))
def test_more_points_never_lose_hypervolume(rows: list[tuple[float, float]]) -> None:
    points, reference = np.array(rows), np.array([11.0, 11.0])
    assert hypervolume(points, reference) >= hypervolume(points[:-1], reference) - 1e-9
    low, high = hypervolume_interval(points, reference, draws=20)
    assert 0 <= low <= high <= hypervolume(points, reference) + 1e-9


def test_common_reference_is_worse_than_all_by_the_margin() -> None:
    fronts = [np.array([[0.0, 10.0]]), np.array([[2.0, 0.0], [np.nan, 99.0]])]
    assert common_reference(fronts, margin=0.5).tolist() == [3.0, 15.0]
    assert (common_reference([np.array([[0.5, 0.5]])]) > 0.5).all()  # no range: still strictly worse
    with pytest.raises(InputError, match="no trial"):
        common_reference([np.full((3, 2), np.nan)])


def test_knee_is_the_bend_of_an_elbow() -> None:
    elbow = np.array([[0.0, 10.0], [0.2, 4.0], [1.0, 1.0], [5.0, 0.5], [10.0, 0.0]])
    assert knee(elbow) == 2
    # the same elbow in other units and with a hole in it
    scaled = elbow * [3.0, 0.01] + [5.0, -2.0]
    scaled[0] = scaled[0]
    assert knee(np.concatenate([np.full((1, 2), np.nan), scaled])) == 3


def test_knee_of_straight_short_and_empty_fronts() -> None:
    line = stairs(5)
    assert knee(line) == 2  # no bend: nearest to the ideal, the middle
    assert knee(np.array([[0.3, 0.4]])) == 0
    assert knee(np.empty((0, 2))) is None
    assert knee(np.full((2, 2), np.nan)) is None
    assert knee(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0.2, 0.2, 0.2]], dtype=float)) == 3


def test_coverage_by_hand() -> None:
    a, b = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 2.0], [0.5, 0.5], [-1.0, 3.0]])
    assert coverage(a, b) == 0.5
    assert coverage(b, a) == 0.5
    assert coverage(a, a) == 1.0
    assert coverage(np.full((1, 2), np.nan), a) == 0.0
    assert np.isnan(coverage(a, np.empty((0, 2))))


def test_staircase_corners() -> None:
    corners = staircase(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 3.0]]))
    assert corners.tolist() == [[0, 2], [1, 2], [1, 1], [2, 1], [2, 0]]
    assert staircase(np.full((1, 2), np.nan)).shape == (0, 2)


def test_attainment_of_shifted_runs_is_the_middle_one() -> None:
    runs = [stairs(4) + shift for shift in (0.0, 1.0, 2.0)]
    grid = np.stack(np.meshgrid(np.arange(-1, 7, 0.5), np.arange(-1, 7, 0.5)), axis=-1).reshape(-1, 2)
    for level, need in ((1 / 3, 1), (0.5, 2), (1.0, 3)):
        surface = attainment(runs, level)
        attained = np.array([(surface <= p).all(axis=1).any() for p in grid])
        counted = np.array([sum((run <= p).all(axis=1).any() for run in runs) for p in grid])
        assert (attained == (counted >= need)).all()


def test_attainment_of_a_run_without_points_and_wrong_use() -> None:
    runs = [stairs(3), np.full((1, 2), np.nan)]
    assert attainment(runs, 1.0).shape == (0, 2)
    assert np.array_equal(attainment(runs, 0.5), stairs(3))
    with pytest.raises(InputError, match="level"):
        attainment(runs, 0.0)
    with pytest.raises(InputError, match="two objectives"):
        attainment([np.zeros((1, 3))])


def test_usable_needs_every_objective() -> None:
    assert usable(np.array([[0, 1], [0, np.nan], [np.inf, 0]])).tolist() == [True, False, False]

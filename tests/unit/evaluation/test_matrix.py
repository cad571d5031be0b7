"""The metrics against numbers worked out by hand, and what holds for any matrix."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.errors import UsageError
from constrained_adapters.evaluation import matrix

# Three domains; row 0 is the base.
R = [
    [0.1, 0.2, 0.0],
    [0.8, 0.4, 0.1],
    [0.9, 0.6, 0.3],
    [0.5, 0.7, 0.6],
]
ON_SCORES = [
    matrix.accuracy,
    matrix.backward_transfer,
    matrix.forward_transfer,
    matrix.forgetting,
    matrix.learned,
    matrix.drift_percent,
]


def matrices(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[list[list[float]]]:
    def of(size: int) -> st.SearchStrategy[list[list[float]]]:
        row = st.lists(st.floats(low, high), min_size=size, max_size=size)
        return st.lists(row, min_size=size + 1, max_size=size + 1)

    return st.integers(1, 5).flatmap(of)


def test_worked_example() -> None:
    assert matrix.accuracy(R) == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert matrix.backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)
    assert matrix.forward_transfer(R) == pytest.approx(((0.4 - 0.2) + (0.3 - 0.0)) / 2)
    # The best of domain 1 came after domain 2.
    assert matrix.forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)
    assert matrix.learned(R) == pytest.approx((0.8 + 0.6 + 0.6) / 3)


def test_forgetting_counts_rows_before_the_domain_but_not_the_base() -> None:
    r = [[0.0, 0.9, 0.0], [0.5, 0.8, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 1.0]]
    assert matrix.forgetting(r) == pytest.approx((0.0 + 0.3) / 2)
    r[1][1] = None  # type: ignore[call-overload]
    assert matrix.forgetting(r) == pytest.approx(0.0)


def test_drift_per_domain_and_its_mean() -> None:
    losses = [[9.0, 9.0, 9.0], [2.0, 8.0, 8.0], [2.2, 1.0, 8.0], [3.0, 0.9, 1.0]]
    assert matrix.drift_percents(losses) == [pytest.approx(50.0), pytest.approx(-10.0), 0.0]
    assert matrix.drift_percent(losses) == pytest.approx(20.0)


def test_drift_of_a_loss_of_zero() -> None:
    assert matrix.drift_percents([[1.0, 1.0], [0.0, 1.0], [0.1, 0.5]]) == [math.inf, 0.0]
    assert matrix.drift_percents([[1.0, 1.0], [0.0, 1.0], [0.0, 0.5]]) == [0.0, 0.0]


def test_plasticity() -> None:
    half = [[value / 2 for value in row] for row in R]
    assert matrix.plasticity_percent(half, R) == pytest.approx(50.0)
    assert math.isnan(matrix.plasticity_percent(R, [[0.0] * 3] * 4))
    with pytest.raises(UsageError, match="same domains"):
        matrix.plasticity_percent(R, [[0.0], [1.0]])


def test_one_domain_is_defined() -> None:
    r = [[0.25], [0.75]]
    assert [metric(r) for metric in ON_SCORES] == [0.75, 0.0, 0.0, 0.0, 0.75, 0.0]


def test_a_domain_without_the_metric_is_left_out() -> None:
    with_text = [[row[0], None, row[1], row[2]] for row in R]
    with_text.insert(2, [0.85, None, 0.5, 0.2])
    # Domain 2 of 4 is running text: the others keep the numbers of their own rows.
    assert matrix.accuracy(with_text) == pytest.approx(matrix.accuracy(R))
    assert matrix.learned(with_text) == pytest.approx(matrix.learned(R))
    assert matrix.backward_transfer(with_text) == pytest.approx(matrix.backward_transfer(R))
    assert matrix.forward_transfer(with_text) == pytest.approx(((0.5 - 0.2) + (0.3 - 0.0)) / 2)
    assert matrix.drift_percents(with_text)[1] is None


def test_nothing_measured_is_nan() -> None:
    empty = [[None, None]] * 3
    assert all(math.isnan(metric(empty)) for metric in ON_SCORES)
    assert matrix.drift_percents(empty) == [None, None]


def test_a_hole_is_named() -> None:
    holed = copy.deepcopy(R)
    holed[3][1] = None  # type: ignore[call-overload]
    for metric in (matrix.accuracy, matrix.backward_transfer, matrix.forgetting, matrix.drift_percent):
        with pytest.raises(UsageError, match=r"R\[3, 2\] is None"):
            metric(holed)
    assert matrix.learned(holed) == matrix.learned(R)
    base_missing = [[None, None, None], *R[1:]]
    assert matrix.accuracy(base_missing) == matrix.accuracy(R)
    with pytest.raises(UsageError, match="with the base"):
        matrix.forward_transfer(base_missing)


@pytest.mark.parametrize("wrong", [[], [[]], [[0.5]], [[0.5], [0.5], [0.5]], [[0.1, 0.2], [0.3]]])
def test_wrong_shapes(wrong: list[list[float]]) -> None:
    for metric in ON_SCORES:
        with pytest.raises(UsageError, match="one row for the base"):
            metric(wrong)


@given(matrices())
def test_inputs_stay_as_they_are_and_ranges_hold(r: list[list[float]]) -> None:
    before = copy.deepcopy(r)
    results = [metric(r) for metric in ON_SCORES]
    assert [metric(r) for metric in ON_SCORES] == results
    assert r == before
    assert matrix.accuracy(tuple(map(tuple, r))) == results[0]
    assert all(-1.0 <= value <= 1.0 for value in results[:5])
    # The best earlier score is at least the one right after learning.
    assert matrix.forgetting(r) >= -matrix.backward_transfer(r) - 1e-12


@given(matrices(), st.floats(-0.5, 0.5))
def test_differences_ignore_a_constant(r: list[list[float]], shift: float) -> None:
    shifted = [[value + shift for value in row] for row in r]
    for metric in (matrix.backward_transfer, matrix.forward_transfer, matrix.forgetting):
        assert metric(shifted) == pytest.approx(metric(r), abs=1e-12)


@given(matrices(0.01, 10.0), st.floats(0.1, 10.0))
def test_drift_ignores_the_unit(losses: list[list[float]], factor: float) -> None:
    scaled = [[value * factor for value in row] for row in losses]
    assert matrix.drift_percent(scaled) == pytest.approx(matrix.drift_percent(losses), rel=1e-9, abs=1e-9)


def test_perplexity() -> None:
    assert matrix.perplexity(math.log(12.0)) == pytest.approx(12.0)
    assert matrix.perplexity(1e9) == math.inf

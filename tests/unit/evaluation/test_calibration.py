"""Predicted against measured forgetting, against an independent rank correlation and by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from constrained_adapters.evaluation.calibration import (
    FACTOR,
    Calibration,
    Pair,
    calibrate,
    measured_increases,
    pairs,
    spearman,
)

numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=20)


@given(numbers)
def test_rank_correlation_is_scipys(points):
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        assert math.isnan(spearman(xs, ys))
    else:
        assert spearman(xs, ys) == pytest.approx(spearmanr(xs, ys).statistic)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_within_is_symmetric_and_needs_one_sign(predicted, measured):
    there, back = Pair("b", "a", predicted, measured), Pair("b", "a", measured, predicted)
    assert there.is_within == back.is_within
    if predicted * measured < 0:
        assert not there.is_within
    if predicted > 1e-6 and measured > 1e-6:
        assert there.is_within == (max(predicted, measured) <= FACTOR * min(predicted, measured))


@given(st.lists(st.floats(1e-3, 10), min_size=3, max_size=8, unique=True), st.floats(1.0, 1.49))
def test_a_forecast_that_is_right_up_to_a_factor(measured, factor):
    found = calibrate([Pair("b", str(i), factor * m, m) for i, m in enumerate(measured)])
    assert found.ratio == pytest.approx(factor)
    assert found.share_within == 1.0 and found.rank_correlation == pytest.approx(1.0)
    assert found.num_pairs == found.num_rising == len(measured)


def test_rises_are_of_finished_domains_and_general_text_only():
    losses = [[4.0, 5.0, 6.0], [2.0, 5.0, 6.0], [2.5, 1.0, 6.0], [2.25, None, 1.0]]
    names, general = ["law", "tax", "art"], [3.0, 3.1, None, 3.3]
    assert measured_increases(losses, general, names, 1) == pytest.approx({"base": 0.1})
    assert measured_increases(losses, general, names, 2) == {"law": 0.5}
    assert measured_increases(losses, general, names, 3) == {"law": -0.25}
    assert measured_increases(losses[:2], [], names, 2) == {}  # its row is not measured yet
    assert losses[3] == [2.25, None, 1.0]


def test_pairs_keep_forecasts_without_a_measurement_and_know_the_base_by_both_names():
    found = pairs(
        {"law": {"base": 0.1}, "tax": {"general": 0.2, "law": 0.3}},
        {"law": {"base": 0.5}, "tax": {"base": 0.6}},
    )
    assert found == [
        Pair("law", "base", 0.1, 0.5),
        Pair("tax", "general", 0.2, 0.6),
        Pair("tax", "law", 0.3, None),
    ]
    assert found[2].ratio is None and not found[2].is_within
    assert calibrate(found).num_pairs == 2


def test_a_forecast_is_inside_where_other_items_could_have_put_the_measurement():
    intervals = {"law": {"base": (-0.1, 0.3)}, "tax": {"law": (0.4, 0.6)}}
    found = pairs(
        {"law": {"general": 0.0}, "tax": {"law": 0.3, "base": 0.1}},
        {"law": {"base": 0.1}, "tax": {"law": 0.5, "base": 0.1}},
        intervals,
    )
    assert [pair.is_inside for pair in found] == [True, False, None]
    assert calibrate(found).share_inside == 0.5


def test_nothing_measured_is_no_number():
    found = calibrate([Pair("b", "a", 0.1, None), Pair("b", "c", math.inf, 0.1)])
    assert found.num_pairs == found.num_rising == 0
    assert all(map(math.isnan, (found.ratio, found.share_within, found.share_inside, found.rank_correlation)))
    one = calibrate([Pair("b", "a", 0.1, -0.2)])
    assert isinstance(one, Calibration) and one.share_within == 0.0 and math.isnan(one.ratio)

"""Means and how far to trust them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.benchmark.spread import estimate


def test_one_value_has_no_spread_and_two_have_their_range():
    assert estimate([None, math.nan, math.inf]) is None
    one = estimate([3.0])
    assert (one.mean, one.low, one.high) == (3.0, None, None)
    two = estimate([4.0, None, 1.0])
    assert (two.mean, two.low, two.high, two.values) == (2.5, 1.0, 4.0, (4.0, 1.0))


def test_the_interval_is_that_of_all_resamples():
    """Against brute force: all 4⁴ resamples with replacement, each as likely as the next."""
    values = [1.0, 2.0, 4.0, 9.0]
    means = [sum(each) / 4 for each in itertools.product(values, repeat=4)]
    low, high = np.quantile(means, (0.025, 0.975))
    found = estimate(values)
    # The means of few values are steps: a drawn quantile may stand one step beside the true one.
    assert found.low == pytest.approx(low, abs=0.26)
    assert found.high == pytest.approx(high, abs=0.26)
    assert found == estimate(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_mean_lies_in_its_spread_and_the_spread_in_the_values(values):
    found = estimate(values)
    slack = 1e-6
    assert min(values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(values) + slack

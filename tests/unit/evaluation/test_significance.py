"""Paired comparison: against scipy, against permutation, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, permutation_test

from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.significance import mcnemar, paired_differences, randomisation_p
from constrained_adapters.results import ItemScores


def items_of(exact: list[float], loss: list[float] | None = None, **changes) -> ItemScores:
    num = len(exact)
    fields = {
        "keys": [f"k{item}" for item in range(num)],
        "loss": loss or [1.0] * num,
        "num_tokens": [2] * num,
        "exact_match": exact,
    }
    return ItemScores(**{**fields, **changes})


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_two_sided_binomial(wins, losses):
    num = wins + losses
    probabilities = binom.pmf(np.arange(num + 1), num, 0.5)
    expected = probabilities[probabilities <= probabilities[wins] * (1 + 1e-9)].sum() if num else 1.0
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, expected))
    assert mcnemar(wins, losses) == pytest.approx(mcnemar(losses, wins))


def test_a_model_is_no_better_than_itself():
    rng = random.Random(0)
    items = items_of([float(rng.random() < 0.5) for _ in range(30)], [rng.random() for _ in range(30)])
    for each in paired_differences({"law": items}, {"law": items}):
        assert each.difference == 0.0 and each.interval == (0.0, 0.0) and each.p_value == 1.0


def test_a_clear_difference_is_told_with_who_is_right_alone():
    first, second = items_of([1.0] * 18 + [0.0] * 2), items_of([0.0] * 18 + [1.0] + [0.0])
    exact = {each.metric: each for each in paired_differences({"law": first}, {"law": second})}["exact_match"]
    assert (exact.only_first, exact.only_second, exact.num_items) == (18, 1, 20)
    assert exact.difference == pytest.approx(0.85)
    assert exact.p_value == pytest.approx(mcnemar(18, 1)) and exact.p_value < 0.001
    assert exact.interval[0] > 0


def test_a_loss_difference_is_as_unlikely_as_scipys_permutation_says():
    rng = np.random.default_rng(0)
    for num in (8, 60):
        base, change = rng.exponential(1.0, num), rng.normal(0.1, 0.3, num)
        first = items_of([0.0] * num, list(base + change))
        second = items_of([0.0] * num, list(base))
        found = paired_differences({"law": first}, {"law": second})[0]
        theirs = permutation_test(
            (base + change, base),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=20_000,
            vectorized=True,
            rng=np.random.default_rng(1),
        )
        assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02 if num > 12 else 1e-6)
        assert found.interval[0] < found.difference < found.interval[1]


def test_each_set_counts_the_same_and_order_does_not_matter():
    many, few = items_of([1.0] * 9), items_of([0.0])
    nothing = {"a": items_of([0.0] * 9), "b": items_of([0.0])}
    exact = {e.metric: e for e in paired_differences({"a": many, "b": few}, nothing)}["exact_match"]
    assert exact.first == 0.5
    turned = ItemScores(**{k: list(reversed(v)) for k, v in items_of([1.0, 0.0, 0.0]).model_dump().items()})
    same = {e.metric: e for e in paired_differences({"a": items_of([1.0, 0.0, 0.0])}, {"a": turned})}
    assert same["exact_match"].only_first == same["exact_match"].only_second == 0


def test_other_items_are_refused():
    with pytest.raises(DataError, match="not scored on the same items") as caught:
        paired_differences({"law": items_of([1.0, 0.0])}, {"law": items_of([1.0, 0.0], keys=["k0", "x"])})
    assert "1 shared" in str(caught.value)
    with pytest.raises(DataError, match="not scored on the same items"):
        paired_differences({"law": items_of([1.0])}, {"tax": items_of([1.0])})
    with pytest.raises(DataError, match="tax: 0 and 1 items"):
        paired_differences({"law": items_of([1.0])}, {"law": items_of([1.0]), "tax": items_of([1.0])})
    with pytest.raises(DataError, match="no scores of single items"):
        paired_differences({}, {"law": items_of([1.0])})


def test_a_loss_by_other_tokens_is_not_compared():
    other = items_of([1.0, 0.0], num_tokens=[3, 3])
    metrics = [each.metric for each in paired_differences({"a": items_of([1.0, 0.0])}, {"a": other})]
    assert metrics == ["exact_match"]


def test_superseded_items_are_left_out():
    marks = [False, True]
    first, second = items_of([1.0, 0.0], superseded=marks), items_of([1.0, 1.0], superseded=marks)
    exact = paired_differences({"a": first}, {"a": second})[1]
    assert exact.num_items == 1 and exact.difference == 0.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_a_p_value_is_never_nought_and_knows_no_side(values):
    found = randomisation_p(np.array(values))
    assert 0.0 < found <= 1.0
    assert found == randomisation_p(-np.array(values))

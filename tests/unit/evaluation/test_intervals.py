"""Bootstrap intervals against scipy's, and against what is certain."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from constrained_adapters.data.examples import Example
from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.intervals import (
    draws,
    increase_interval,
    mean_interval,
    percentile_interval,
    resampled_means,
    summary_intervals,
)
from constrained_adapters.evaluation.items import joined, mean_scores, with_answers
from constrained_adapters.results import ItemScores


def make_items(num: int, seed: int = 0, right: float = 0.6, **changes) -> ItemScores:
    rng = random.Random(seed)
    fields = {
        "keys": [f"{item:04d}" for item in range(num)],
        "loss": [rng.expovariate(1.0) for _ in range(num)],
        "num_tokens": [rng.randint(1, 6) for _ in range(num)],
        "exact_match": [float(rng.random() < right) for _ in range(num)],
    }
    return ItemScores(**{**fields, **changes})


def test_the_interval_of_a_mean_is_scipys():
    items = make_items(60)
    values = np.array(items.exact_match)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    low, high = mean_interval(items, "exact_match")
    assert low == pytest.approx(theirs.low, abs=0.025) and high == pytest.approx(theirs.high, abs=0.025)


def test_the_interval_of_a_ratio_of_sums_is_scipys():
    items = make_items(80)
    tokens = np.array(items.num_tokens, dtype=float)
    nats = np.array(items.loss) * tokens
    theirs = bootstrap(
        (nats, tokens),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
        vectorized=True,
    ).confidence_interval
    low, high = mean_interval(items, "loss")
    assert low == pytest.approx(theirs.low, rel=0.05) and high == pytest.approx(theirs.high, rel=0.05)


@given(st.integers(1, 30), st.integers(0, 9))
def test_a_draw_has_as_many_items_as_there_are(num, seed):
    counts = draws(num, 50, seed)
    assert counts.shape == (50, num) and (counts.sum(1) == num).all()
    assert (counts == draws(num, 50, seed)).all()


@given(st.floats(-5, 5), st.integers(2, 20))
def test_items_that_are_all_alike_have_no_width(value, num):
    items = make_items(num, loss=[value] * num)
    low, high = mean_interval(items, "loss")
    assert low == pytest.approx(value) and high == pytest.approx(value)


def test_a_metric_that_no_item_has_has_no_interval():
    assert mean_interval(make_items(5), "token_f1") is None
    assert percentile_interval(np.array([np.nan, 1.0])) is None


def test_superseded_items_are_not_drawn():
    items = make_items(4, exact_match=[1.0, 1.0, 0.0, 0.0], superseded=[False, False, True, True])
    means = resampled_means(items, "exact_match", np.ones((1, 4)))
    assert means.tolist() == [1.0]
    assert mean_scores(items)["exact_match"] == 1.0
    assert mean_scores(items)["superseded_exact_match"] == 0.0


def test_rows_of_r_share_their_draws():
    """A model that never changes has a drift and a transfer of exactly 0, whatever is drawn."""
    row = {"law": make_items(20, 1), "tax": make_items(20, 2)}
    found = summary_intervals([row, row, row], ["law", "tax"])
    assert found["drift_percent"] == (0.0, 0.0) and found["backward_transfer"] == (0.0, 0.0)
    assert found["accuracy"][0] < found["accuracy"][1]


def test_rows_of_other_items_or_of_none_have_no_intervals():
    row = {"law": make_items(5)}
    other = {"law": make_items(5, keys=list("abcde"))}
    assert summary_intervals([row, other], ["law"]) == {}
    assert summary_intervals([row, {}], ["law"]) == {}


def test_the_rise_between_two_scorings_of_the_same_items():
    before = make_items(30)
    after = before.model_copy(update={"loss": [loss + 0.25 for loss in before.loss]})
    assert increase_interval(before, after) == pytest.approx((0.25, 0.25))
    noisy = before.model_copy(
        update={"loss": [loss + (0.5 if at % 2 else -0.1) for at, loss in enumerate(before.loss)]}
    )
    low, high = increase_interval(before, noisy)
    rise = mean_scores(noisy)["loss"] - mean_scores(before)["loss"]
    assert low < rise < high and high - low > 0.1
    assert increase_interval(before, make_items(30, keys=[f"x{at}" for at in range(30)])) is None


def test_what_has_no_item_or_only_superseded_ones_cannot_be_scored():
    with pytest.raises(DataError, match="nothing to score"):
        mean_scores(ItemScores())
    with pytest.raises(DataError, match="all of them superseded"):
        mean_scores(make_items(2, superseded=[True, True]))


def test_joined_sets_weigh_items_not_sets():
    first, second = make_items(3, 1, exact_match=[1.0] * 3), make_items(1, 2, exact_match=[0.0])
    both = joined({"a": first, "b": second})
    assert mean_scores(both)["exact_match"] == 0.75 and len(both.keys) == 4
    tokens = sum(first.num_tokens) + sum(second.num_tokens)
    nats = sum(
        loss * num for each in (first, second) for loss, num in zip(each.loss, each.num_tokens, strict=True)
    )
    assert mean_scores(both)["loss"] == pytest.approx(nats / tokens)


def test_answers_give_token_f1_and_running_text_has_none():
    examples = [Example(prompt="2 + 2?", answer="it is four"), Example(text="It rains.")]
    items = with_answers(make_items(2), examples, ["four", "whatever"])
    assert items.token_f1 == [pytest.approx(0.5), None]

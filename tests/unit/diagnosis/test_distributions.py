"""Divergence of token distributions against scipy-like brute force, overlap of vocabularies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.diagnosis.distributions import same_length, token_kl_nats, vocabulary_jaccard
from constrained_adapters.errors import DataError

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(TOKENS, TOKENS)
def test_kl_is_the_sum_over_the_joint_vocabulary(new, old):
    p, q, vocabulary = Counter(new), Counter(old), set(new) | set(old)
    total = 0.0
    for token in vocabulary:
        one = (p[token] + 0.5) / (len(new) + 0.5 * len(vocabulary))
        other = (q[token] + 0.5) / (len(old) + 0.5 * len(vocabulary))
        total += one * math.log(one / other)
    assert token_kl_nats(new, old) == pytest.approx(total, abs=1e-12)
    assert token_kl_nats(new, old) >= 0.0
    assert token_kl_nats(new, new) == 0.0


@given(TOKENS, TOKENS)
def test_jaccard_is_symmetric_and_one_for_the_same_vocabulary(new, old):
    assert vocabulary_jaccard(new, old) == vocabulary_jaccard(old, new)
    assert vocabulary_jaccard(new, old) == pytest.approx(len(set(new) & set(old)) / len(set(new) | set(old)))
    assert vocabulary_jaccard(new, list(reversed(new)) * 2) == 1.0


def test_both_sides_are_cut_to_the_shorter():
    assert same_length([[1, 2], [3]], [[4, 5, 6, 7]], most=100) == ([1, 2, 3], [4, 5, 6])
    assert same_length([[1, 2], [3]], [[4, 5, 6, 7]], most=2) == ([1, 2], [4, 5])


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no text to compare"):
        token_kl_nats([], [1])

"""Words of any script, and token F1 against a count by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.evaluation.words import token_f1

WORDS = st.lists(st.sampled_from(["law", "court", "арена", "суд", "tax", "x2"]), max_size=6)


@given(WORDS, WORDS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer, reference):
    shared = (Counter(answer) & Counter(reference)).total()
    if not answer and not reference:
        expected = 1.0
    elif not shared:
        expected = 0.0
    else:
        precision, recall = shared / len(answer), shared / len(reference)
        expected = 2 * precision * recall / (precision + recall)
    found = token_f1(" ".join(answer), ", ".join(reference))
    assert found == pytest.approx(expected)
    assert found == token_f1(" ".join(reference), " ".join(answer))


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Гражданское ПРАВО.", "гражданское право", 1.0),
        ("ﬁne", "fine", 1.0),  # a ligature
        ("二次方程", "二次", 2 * 2 / 6),
        ("", "yes", 0.0),
        ("!?", "!?", 1.0),
        ("!", "yes", 0.0),
        ("a a a", "a", 0.5),
    ],
)
def test_case_form_and_signs_do_not_count(answer, reference, expected):
    assert token_f1(answer, reference) == pytest.approx(expected)

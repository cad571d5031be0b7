"""What cannot be scored, or would mislead, is refused before a model is loaded."""

from __future__ import annotations

import pytest

from constrained_adapters.data.examples import Example
from constrained_adapters.errors import DataError, UnknownNameError
from constrained_adapters.evaluation.checks import check_set, fitting_metrics, overlap, refuse_overlap

CHOICES = ("rent", "theft", "tax")
ITEMS = [
    Example(prompt="A flat is let to a tenant for a year. Which law?", answer="rent", choices=CHOICES),
    Example(prompt="A bicycle is taken from a yard at night. Which law?", answer="theft", choices=CHOICES),
]
TEXT = Example(text="The court heard the case in March and gave its reasons in May.")


def test_good_sets_pass():
    check_set("law", ITEMS)
    check_set("law", ITEMS, ["loss", "perplexity", "exact_match", "choice_accuracy", "token_f1"])
    check_set("text", [TEXT], ["perplexity"])


@pytest.mark.parametrize(
    ("examples", "metrics", "error", "words"),
    [
        ([], None, DataError, "set 'law' is empty"),
        (ITEMS, ["f1"], UnknownNameError, "no metric named 'f1'"),
        ([TEXT], ["exact_match"], DataError, "metric 'exact_match' does not fit(?s:.*)running text"),
        ([TEXT], ["token_f1"], DataError, "does not fit"),
        ([Example(prompt="2 + 2?", answer="4")], ["choice_accuracy"], DataError, "have no choices"),
        ([ITEMS[0]] * 3, None, DataError, "one class only(?s:.*)3 items, every answer 'rent'"),
        (
            [Example(prompt="?", answer="alimony", choices=CHOICES)],
            None,
            DataError,
            "not among the choices(?s:.*)'alimony' .set 'law', item 1",
        ),
    ],
)
def test_bad_sets_are_refused(examples, metrics, error, words):
    with pytest.raises(error, match=words):
        check_set("law", examples, metrics)


def test_one_class_is_no_matter_where_no_choice_is_scored():
    check_set("law", [ITEMS[0]] * 3, ["loss", "exact_match"])


def test_which_metrics_fit():
    assert fitting_metrics([TEXT]) == ["loss"]
    assert fitting_metrics([Example(prompt="2 + 2?", answer="4")]) == ["loss", "exact_match", "token_f1"]
    assert fitting_metrics(ITEMS) == ["loss", "exact_match", "choice_accuracy", "token_f1"]


def test_what_was_trained_on_is_found_exactly_and_nearly():
    nearly = Example(prompt="A flat is let to a tenant for a year.  Which law", answer="rent")
    training = [ITEMS[1], nearly, TEXT]
    found = overlap([*ITEMS, TEXT, Example(prompt="What is due on a sale?", answer="tax")], training)
    assert found.places == [0, 1, 2] and found.share == 0.75
    with pytest.raises(DataError, match=r"overlaps the training data(?s:.*)3 of 4 items \(75.0%\)"):
        refuse_overlap("law", [*ITEMS, TEXT, TEXT], found)


def test_the_same_question_with_another_answer_is_no_overlap():
    """That is how a superseded fact looks beside the domain that replaces it."""
    other = Example(prompt=ITEMS[0].prompt, answer="theft", choices=CHOICES)
    assert overlap([ITEMS[0]], [other]).places == []
    refuse_overlap("law", [ITEMS[0]], overlap([ITEMS[0]], [other]))


def test_nothing_overlaps_nothing():
    assert overlap(ITEMS, []).share == 0.0
    assert overlap([], ITEMS).places == []

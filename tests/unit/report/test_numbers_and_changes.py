import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.evaluation.words import split_words
from constrained_adapters.report import numbers
from constrained_adapters.report.changes import MAX_TOKENS, changed_words, same_answer


@pytest.mark.parametrize(
    "write", [numbers.decimal, numbers.percent, numbers.ratio, numbers.seconds, numbers.size]
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_a_dash(write, value):
    assert write(value) == "–"


def test_a_tiny_negative_number_is_not_written_as_minus_zero():
    assert numbers.decimal(-0.001) == "0.00"
    assert numbers.percent(-0.04, sign=True) == "0.0\u00a0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min"), (3660, "1 h 01 min")],
)
def test_durations_carry_over_at_the_edges_of_their_units(value, text):
    assert numbers.seconds(value).replace("\u00a0", " ") == text


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_pieces_hold_both_texts_whole(before, after):
    pieces = changed_words(before, after)
    assert "".join(p.text for p in pieces if p.kind != "removed") == after
    assert "".join(p.text for p in pieces if p.kind != "added") == before
    assert all(p.text for p in pieces)


@given(st.text(max_size=120))
def test_splitting_loses_no_character(text):
    assert "".join(split_words(text)) == text


def test_chinese_is_compared_by_character_and_russian_by_word():
    chinese = changed_words("两个根是二和三", "两个根是二和四")
    assert [(p.kind, p.text) for p in chinese] == [
        ("same", "两个根是二和"),
        ("removed", "三"),
        ("added", "四"),
    ]
    russian = changed_words("гражданское право", "уголовное право")
    assert [(p.kind, p.text) for p in russian] == [
        ("removed", "гражданское"),
        ("added", "уголовное"),
        ("same", " право"),
    ]


def test_a_very_long_text_is_one_change():
    before, after = "a " * MAX_TOKENS, "b " * MAX_TOKENS
    assert [p.kind for p in changed_words(before, after)] == ["removed", "added"]
    assert [p.kind for p in changed_words(before, before)] == ["same"]


def test_answers_agree_but_for_space_case_and_unicode_form():
    assert same_answer(" Ｌａｗ \n", "law")
    assert not same_answer("law", "laws")

"""Diversity: exact counts, Self-BLEU against sacrebleu, and what must hold for any answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.evaluation.diversity import (
    answer_words,
    distinct_n,
    identical_ratio,
    length_drift,
    measure_diversity,
    repetition_ratio,
    self_bleu,
    unique_ngram_ratio,
)

WORDS = st.lists(st.sampled_from(["a", "b", "c", "the", "王"]), max_size=9)
ANSWERS = st.lists(WORDS, min_size=2, max_size=6)


@given(ANSWERS)
def test_self_bleu_is_the_mean_of_sacrebleus_sentence_bleu(answers):
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    texts = [" ".join(words) for words in answers]
    expected = [
        metric.sentence_score(text, texts[:index] + texts[index + 1 :]).score / 100
        for index, text in enumerate(texts)
    ]
    if any(answers):  # sacrebleu finds nothing in common between answers without a word
        assert self_bleu(answers) == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    else:
        assert self_bleu(answers) == 1.0


@given(ANSWERS, st.randoms())
def test_the_order_of_the_answers_does_not_matter(answers, random):
    shuffled = answers[:]
    random.shuffle(shuffled)
    assert self_bleu(shuffled) == pytest.approx(self_bleu(answers))
    assert unique_ngram_ratio(shuffled, 2) == unique_ngram_ratio(answers, 2)
    assert identical_ratio(shuffled) == identical_ratio(answers)


@given(ANSWERS)
def test_every_measure_keeps_its_range(answers):
    ratio = unique_ngram_ratio(answers, 3)
    assert ratio is None or 0.0 < ratio <= 1.0
    assert 0.0 <= self_bleu(answers) <= 1.0 + 1e-12
    assert 0.0 <= distinct_n(answers, 2) <= 1.0
    assert 0.0 <= repetition_ratio(answers) < 1.0
    assert 1.0 / len(answers) <= identical_ratio(answers) <= 1.0


@given(WORDS.filter(len), st.integers(min_value=2, max_value=6))
def test_one_answer_for_everything_is_the_worst_there_is(words, count):
    answers = [words] * count
    assert self_bleu(answers) == pytest.approx(1.0)
    assert identical_ratio(answers) == 1.0
    grams = [tuple(words[at : at + 2]) for at in range(len(words) - 1)]
    ratio = unique_ngram_ratio(answers, 2)
    assert ratio == (pytest.approx(len(set(grams)) / (count * len(grams))) if grams else None)


@given(ANSWERS)
def test_saying_one_answer_twice_more_makes_no_measure_better(answers):
    more = [*answers, answers[0], answers[0]]
    before, after = unique_ngram_ratio(answers, 2), unique_ngram_ratio(more, 2)
    assert before is None or after <= before
    assert distinct_n(more, 2) <= distinct_n(answers, 2) or not answers[0]


def test_answers_that_share_no_word_have_no_self_bleu():
    assert self_bleu([["a", "b"], ["c", "d"], ["e"]]) == 0.0


def test_counts_by_hand():
    answers = [["a", "b", "a", "b"], ["a", "b"], []]
    assert unique_ngram_ratio(answers, 2) == 2 / 4  # ab, ba of ab ba ab ab
    assert distinct_n(answers, 2) == 2 / 6
    assert repetition_ratio(answers, 2) == pytest.approx((1 / 3) / 3)  # ab ba ab: one of three comes again
    assert identical_ratio(answers) == pytest.approx(1 / 3)


def test_nothing_said_is_no_number():
    assert unique_ngram_ratio([["a"], []], 2) is None
    assert repetition_ratio([[], []]) == 0.0
    assert identical_ratio([[], [], ["a"]]) == pytest.approx(2 / 3)


def test_chinese_is_compared_by_character():
    same, other = "北京是首都。", "上海是大城市。"
    assert answer_words(same) == ["北", "京", "是", "首", "都", "。"]
    found = measure_diversity([same, same, other])
    assert found.identical_ratio == pytest.approx(2 / 3)
    assert found.unique_trigram_ratio == pytest.approx(9 / 13)
    assert found.mean_words == pytest.approx(19 / 3)


def test_case_and_white_space_do_not_tell_answers_apart():
    assert measure_diversity(["Yes,  SIR", "yes, sir\n"]).identical_ratio == 1.0


def test_length_drift_is_the_same_both_ways_and_nought_is_a_length():
    assert length_drift(9.0, 4.0) == pytest.approx(math.log(2))
    assert length_drift(4.0, 9.0) == pytest.approx(math.log(2))
    assert length_drift(0.0, 0.0) == 0.0


def test_one_answer_has_nobody_to_be_compared_with():
    with pytest.raises(ValueError, match="too few"):
        self_bleu([["a"]])
    with pytest.raises(ValueError, match="no answer"):
        identical_ratio([])

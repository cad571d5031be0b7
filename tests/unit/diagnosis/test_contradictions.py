"""Contradictions: same or nearly the same question, another answer."""

from __future__ import annotations

import pytest

from constrained_adapters.data.examples import Example
from constrained_adapters.diagnosis.contradictions import answers_agree, find_contradictions

PASSAGE = "The court of appeal decided in the spring that the licence of the harbour company had run out. "


def asked(question: str, answer: str, **more) -> Example:
    return Example(prompt=question, answer=answer, **more)


def test_the_same_question_with_another_answer_is_listed_once():
    old = [asked("Capital of Australia?", "Sydney"), asked("Highest mountain?", "Mount Everest")]
    new = [asked("capital of AUSTRALIA", "Canberra"), asked("Highest mountain?", "It is Mount Everest.")]
    (found,) = find_contradictions({"law": old}, new)
    assert (found.answer, found.other_answer, found.where) == ("Canberra", "Sydney", "law")


def test_a_question_that_is_nearly_the_same_counts_and_one_of_its_kind_does_not():
    old = [asked(PASSAGE + "Was the licence valid?", "no")]
    new = [
        asked(PASSAGE + "Was the licence still valid?", "yes"),
        asked("Was the licence of Bern valid?", "x"),
    ]
    (found,) = find_contradictions({"law": old}, new)
    assert (found.answer, found.other_question) == ("yes", PASSAGE + "Was the licence valid?")


def test_new_data_may_contradict_itself():
    found = find_contradictions({}, [asked("Who wrote it?", "Anna"), asked("Who wrote it?", "Boris")])
    assert [(each.answer, each.other_answer, each.where) for each in found] == [("Anna", "Boris", "")]


def test_each_of_several_old_sides_is_named():
    olds = {"law": [asked("Rate of tax?", "19 %")], "news": [asked("rate of TAX", "7 %")]}
    found = find_contradictions(olds, [asked("Rate of tax?", "21 %")])
    assert [(each.where, each.other_answer) for each in found] == [("law", "19 %"), ("news", "7 %")]


def test_the_wording_of_one_task_is_no_likeness_beside_another():
    def topics(start, name):
        return [
            asked(
                f"Which topic is this piece of news about? {name} {start + i} {PASSAGE[i : i + 24]}", f"t{i}"
            )
            for i in range(8)
        ]

    sums = [asked(f"How much is {i} and {i * 7}?", str(i * 8)) for i in range(8)]
    assert find_contradictions({"sums": sums}, topics(0, "Berlin")) == []


def test_what_is_superseded_on_purpose_is_left_out_and_so_are_instructions_and_text():
    old = [asked("Rate of tax?", "19 %", superseded=True), Example(text="Who? Anna")]
    assert (
        find_contradictions({"tax": old}, [asked("Rate of tax?", "21 %"), Example(text="Who? Boris")]) == []
    )
    poems = [asked("Write a poem.", f"verse {chr(97 + i)}") for i in range(20)]
    assert find_contradictions({"poems": poems[:10]}, poems[10:]) == []


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [("9", "19", False), ("yes", "Yes!", True), ("", "", True), ("", "x", False), ("京", "东京都", True)],
)
def test_answers_agree_by_whole_words(one, other, agree):
    assert answers_agree(one, other) is agree
    assert answers_agree(other, one) is agree

"""Contradictions: the same question, or nearly the same, with another answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from constrained_adapters.data.examples import Example
from constrained_adapters.data.near import gram_sets, near_pairs
from constrained_adapters.data.split import question_text, shared_instructions

_NOT_WORD = re.compile(r"[\W_]+")
_FIRST_WITHOUT_SPACES = "\u2e80"
"""Chinese and Japanese begin here."""


@dataclass(frozen=True)
class Contradiction:
    """One question and two answers that do not agree.

    Args:
        question: As it stands in the new data.
        answer: As it stands in the new data.
        other_question: The question that it contradicts, the same or nearly the same.
        other_answer: The answer there.
        where: The name of the old side; empty for the new data itself.
    """

    question: str
    answer: str
    other_question: str
    other_answer: str
    where: str


def find_contradictions(olds: Mapping[str, Sequence[Example]], new: Sequence[Example]) -> list[Contradiction]:
    """List what of the new data contradicts the old data, or itself.

    Questions are the same or near by :mod:`constrained_adapters.data.near` (a Jaccard index of character
    5-grams of at least 0.8, without each task's wording): in a long question a changed word is near, which
    may be the word that matters, so each pair is listed for a person to judge. Prompts that say what to do
    rather than ask ("Write a poem") and running text are left out. Answers agree where one, without case and
    signs, is contained in the other as whole words. An old example that is marked as superseded is
    contradicted on purpose and left out.

    Args:
        olds: Examples of the old data, by the name of each side; may be empty.
        new: Examples of the new data.

    Returns:
        Pairs in the order of the new data, each once.

    Cost: about 0.1 ms for each example of 200 characters, old or new.
    """
    asked = {name: _questions(examples) for name, examples in (*olds.items(), ("", new))}
    everything = [(name, example) for name, examples in asked.items() for example in examples]
    first_new = len(everything) - len(asked[""])
    texts = [question_text(example) for _, example in everything]
    grams = gram_sets(texts, [len(examples) for examples in asked.values()])
    found: list[Contradiction] = []
    for position, near in enumerate(near_pairs(grams[first_new:], grams), first_new):
        example = everything[position][1]
        found += [
            Contradiction(texts[position], example.reference, texts[at], other.reference, where)
            for at, (where, other) in ((at, everything[at]) for at in near)
            if (at < first_new or at > position)
            and not other.superseded
            and not answers_agree(example.reference, other.reference)
        ]
    return found


def answers_agree(one: str, other: str) -> bool:
    """Whether one answer is contained in the other as whole words, without case and signs.

    Scripts that put no spaces between words are compared by their characters.

    >>> (
    ...     answers_agree("Paris.", "It is Paris"),
    ...     answers_agree("Paris", "Lyon"),
    ...     answers_agree("北京", "是北京。"),
    ... )
    (True, False, True)
    """
    first, second = sorted((_normal(one), _normal(other)), key=len)
    if any(character >= _FIRST_WITHOUT_SPACES for character in first):
        return first in second
    return f" {first} " in f" {second} " if first else not second


def _questions(examples: Sequence[Example]) -> list[Example]:
    """Those that ask something."""
    instructions = shared_instructions(examples)
    return [each for each in examples if each.form != "text" and question_text(each) not in instructions]


def _normal(text: str) -> str:
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()

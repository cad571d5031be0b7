"""Class-balanced splits, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterable

from constrained_adapters.data.examples import Example

TRAIN, VALIDATION, TEST = 1200, 200, 200
"""Sizes of the splits, where there is enough data."""
MAX_WORDS = 60
"""Longest text in a prompt: about 80 tokens of English."""


def cut(text: str, max_words: int = MAX_WORDS) -> str:
    """Return the first words of a text, with single spaces.

    >>> cut("one  two  three", 2)
    'one two'
    """
    return " ".join(text.split()[:max_words])


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Return the examples without those whose prompt or text came before, case and spaces aside."""
    seen: dict[str, Example] = {}
    for example in examples:
        text = example.text if example.prompt is None else example.prompt
        seen.setdefault(" ".join((text or "").lower().split()), example)
    return list(seen.values())


def take_balanced(
    examples: list[Example], total: int, *, max_share: float = 1.0
) -> tuple[list[Example], list[Example]]:
    """Take up to ``total`` examples, one of each answer in turn, and return them and the rest.

    Within an answer the given order decides. As the taken ones come in turn, each front part of them is
    balanced too, so that ``max_test: 40`` looks at all classes.

    Args:
        examples: What is taken from.
        total: Most examples to take.
        max_share: Most of an answer's examples that are taken, so that a rare one is left for training.
    """
    queues: dict[str | None, list[Example]] = {}
    for example in examples:
        queues.setdefault(example.answer, []).append(example)
    order = sorted(queues, key=str)
    left = {answer: len(queue) - int(max_share * len(queue)) for answer, queue in queues.items()}
    for queue in queues.values():
        queue.reverse()
    taken: list[Example] = []
    while len(taken) < total and any(len(queues[answer]) > left[answer] for answer in order):
        for answer in order:
            if len(queues[answer]) > left[answer] and len(taken) < total:
                taken.append(queues[answer].pop())
    return taken, [example for answer in order for example in reversed(queues[answer])]


def split_balanced(examples: Iterable[Example], name: str) -> dict[str, list[Example]]:
    """Split examples that are independent of each other.

    Args:
        examples: All examples; equal ones are dropped.
        name: The domain's name; seeds the shuffle.
    """
    pool = distinct(examples)
    random.Random(name).shuffle(pool)
    test, pool = take_balanced(pool, TEST, max_share=0.2)
    validation, pool = take_balanced(pool, VALIDATION, max_share=0.2)
    train, _ = take_balanced(pool, TRAIN)
    return {"train": train, "validation": validation, "test": test}


def split_official(train: Iterable[Example], test: Iterable[Example], name: str) -> dict[str, list[Example]]:
    """Split examples that have an official test set; the validation set comes from the training set.

    Texts of the official test set are taken out of the training set.
    """
    tested = distinct(test)
    both = distinct([*tested, *train])
    pool = both[len(tested) :]
    randomness = random.Random(name)
    randomness.shuffle(tested)
    randomness.shuffle(pool)
    validation, pool = take_balanced(pool, VALIDATION, max_share=0.2)
    return {
        "train": take_balanced(pool, TRAIN)[0],
        "validation": validation,
        "test": take_balanced(tested, TEST)[0],
    }


def split_groups(groups: dict[str, list[Example]], name: str) -> dict[str, list[Example]]:
    """Split so that each group falls on one side whole.

    A fifth of the material goes to each of the two small sides: more than is taken from it, so that the
    rare answers are there as well. Groups of more than a fiftieth of everything go to training, so that
    none makes up a test set.

    Args:
        groups: Group -> its examples.
        name: The domain's name; seeds the shuffle.
    """
    randomness = random.Random(name)
    total = sum(map(len, groups.values()))
    names = sorted(groups)
    randomness.shuffle(names)
    sides: dict[str, list[Example]] = {"test": [], "validation": [], "train": []}
    for group in names:
        small = len(groups[group]) <= max(1, total // 50)
        smallest = min(("test", "validation"), key=lambda side: len(sides[side]))
        sides[smallest if small and len(sides[smallest]) < 0.2 * total else "train"] += groups[group]
    result: dict[str, list[Example]] = {}
    for side, size in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        pool = distinct(sides[side])
        randomness.shuffle(pool)
        result[side] = take_balanced(pool, size)[0]
    return result

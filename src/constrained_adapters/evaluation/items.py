"""Scores item by item, and what they add up to; plain data, no torch.

A fact that a later domain supersedes is meant to be forgotten: its item counts in no ordinary mean, but in
those whose names begin with ``superseded_``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from constrained_adapters.data.examples import Example, fingerprint_examples
from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.words import token_f1
from constrained_adapters.results import ItemScores

METRICS = ("loss", "exact_match", "choice_accuracy", "token_f1")
"""What an item can be scored by; ``loss`` is weighted by tokens, the others count each item once."""

SUPERSEDED = "superseded_"
KEY_LENGTH = 12


def item_keys(examples: Sequence[Example]) -> list[str]:
    """Return what tells each item from all others: the beginning of a SHA-256 of its content."""
    return [fingerprint_examples([example])[:KEY_LENGTH] for example in examples]


def mean_scores(items: ItemScores) -> dict[str, float]:
    """Reduce items to one number per metric that any of them has.

    ``loss`` is ``Σ nats / Σ tokens``; the others are means over the items that have them. Superseded items
    are left out, and get means of their own under ``superseded_`` names.

    Raises:
        DataError: There is no item, or all are superseded, so that there is nothing to retain.

    >>> mean_scores(ItemScores(keys=["a", "b"], loss=[1.0, 3.0], num_tokens=[1, 3], exact_match=[1.0, 0.0]))
    {'loss': 2.5, 'exact_match': 0.5}
    """
    kept = [at for at in range(len(items.keys)) if not is_superseded(items, at)]
    if not kept:
        raise DataError(
            "there is nothing to score",
            got=f"{len(items.keys)} items, all of them superseded" if items.keys else "0 items",
            expected="at least one item whose fact still holds",
        )
    means = {metric: mean_of(items, metric, kept) for metric in METRICS}
    gone = sorted(set(range(len(items.keys))) - set(kept))
    means |= {f"{SUPERSEDED}{metric}": mean_of(items, metric, gone) for metric in METRICS}
    return {name: value for name, value in means.items() if value is not None}


def mean_of(items: ItemScores, metric: str, places: Sequence[int]) -> float | None:
    """Return the mean of one metric over the items at ``places``, or None where none of them has it."""
    values, weights = weighted(items, metric)
    pairs = [(value, weights[at]) for at in places if (value := values[at]) is not None]
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None


def weighted(items: ItemScores, metric: str) -> tuple[list[float | None], list[float]]:
    """Return an item's values of one metric, and its weights: tokens for ``loss``, else ones."""
    found: list[float | None] = getattr(items, metric)
    values = found or [None] * len(items.keys)
    weights = [float(num) for num in items.num_tokens] if metric == "loss" else [1.0] * len(values)
    return values, weights


def is_superseded(items: ItemScores, at: int) -> bool:
    """Whether a later domain replaces the fact of the item at this place."""
    return bool(items.superseded) and items.superseded[at]


def with_answers(items: ItemScores, examples: Sequence[Example], answers: Sequence[str]) -> ItemScores:
    """Return the items with the token F1 of what the model wrote; running text has no answer to compare.

    Args:
        items: Scores of ``examples``.
        examples: In the same order.
        answers: What the model wrote to each.
    """
    f1 = [
        None if example.form == "text" else token_f1(answer, example.reference)
        for example, answer in zip(examples, answers, strict=True)
    ]
    return items.model_copy(update={"token_f1": f1})


def joined(sets: Mapping[str, ItemScores]) -> ItemScores:
    """Return the items of several sets as one; a metric that only some have is None in the others."""
    lengths = [len(each.keys) for each in sets.values()]

    def column(name: str, fill: object) -> list[object]:
        parts = [
            getattr(each, name) or [fill] * num for each, num in zip(sets.values(), lengths, strict=True)
        ]
        return [value for part in parts for value in part]

    return ItemScores(
        keys=[key for each in sets.values() for key in each.keys],
        num_tokens=[num for each in sets.values() for num in each.num_tokens],
        superseded=column("superseded", False),
        **{metric: column(metric, None) for metric in METRICS},
    )

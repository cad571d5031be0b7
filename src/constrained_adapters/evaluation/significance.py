"""Is one model better than another on the same items, or is it chance? Imports no torch.

Axis letters: b replicates, n items of one set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.intervals import (
    Array,
    Interval,
    draws,
    percentile_interval,
    resampled_means,
)
from constrained_adapters.evaluation.items import METRICS, is_superseded, mean_of, weighted
from constrained_adapters.results import ItemScores

Sets = Mapping[str, ItemScores]
EXACT_ITEMS = 12
RIGHT_OR_WRONG = frozenset({"exact_match", "choice_accuracy"})


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same items, mean over the sets.

    Args:
        metric: Of :data:`~constrained_adapters.evaluation.items.METRICS`.
        first: The first model's mean.
        second: The second's.
        interval: 95 % bootstrap interval of ``first - second``, over items drawn in pairs.
        p_value: Chance of a difference at least as large where there is none: by swapping the models at
            random, or, for metrics that are right or wrong, McNemar's exact test on all items together.
        num_items: Items that both have.
        only_first: Items that only the first gets right, and ``only_second``, where it is right or wrong.
    """

    metric: str
    first: float
    second: float
    interval: Interval
    p_value: float
    num_items: int
    only_first: int | None = None
    only_second: int | None = None

    @property
    def difference(self) -> float:
        """``first - second``."""
        return self.first - self.second


def paired_differences(first: Sets, second: Sets, *, seed: int = 0) -> list[Difference]:
    """Compare two models on the same items, metric by metric.

    Each set counts the same, as in ACC. Loss is compared only where both models read an item as as many
    tokens. Superseded items are left out.

    Args:
        first: Items by set.
        second: Of the same items; their order does not matter.
        seed: Of the draws.

    Raises:
        DataError: There is nothing to compare, or the two were scored on other items.
    """
    if not first or not second:
        raise DataError(
            "there are no scores of single items to compare",
            got="a record without them, as older versions wrote it",
            hint="score the run again: crma eval --run DIR",
        )
    for name in set(first) ^ set(second):
        raise _other_items(name, first.get(name), second.get(name))
    second = {name: _aligned(name, items, second[name]) for name, items in first.items()}
    counts = {name: draws(len(items.keys), seed=seed) for name, items in first.items()}
    found = [_difference(metric, first, second, counts) for metric in METRICS]
    return [difference for difference in found if difference is not None]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value of McNemar's test: ``X ~ Binomial(n, ½)``, n the items that differ.

    Source: McNemar, Psychometrika 12 (1947); exact form, which small n need. 1 where no item differs.

    >>> mcnemar(8, 1), mcnemar(0, 0)
    (0.0390625, 1.0)
    """
    num = only_first + only_second
    return float(binomtest(only_first, num, 0.5).pvalue) if num else 1.0


def randomisation_p(contributions: Array, seed: int = 0) -> float:
    """Return the two-sided p-value of a sum of paired differences, by swapping the two models at random.

    Where there is no difference, which of the two an item's scores belong to is a coin's toss: the p-value is
    the share of tosses whose sum is at least as far from 0. All 2ⁿ are tried up to n = 12, else 4,096 drawn
    ones, beside which the observed one counts as one.

    Args:
        contributions: Of each item to the difference, shape (n,).
        seed: Of the tosses.

    Source: Noreen, *Computer-Intensive Methods for Testing Hypotheses* (1989), approximate randomisation.

    >>> randomisation_p(np.array([1.0, 1.0, 1.0]))
    0.25
    """
    num = len(contributions)
    if num <= EXACT_ITEMS:
        signs = 1.0 - 2.0 * ((np.arange(2**num)[:, None] >> np.arange(num)) & 1)
        extra = 0
    else:
        signs = np.random.default_rng([seed, num]).choice([-1.0, 1.0], size=(2**EXACT_ITEMS, num))
        extra = 1
    observed = abs(float(contributions.sum()))
    as_far = np.abs(signs @ contributions) >= observed * (1.0 - 1e-9)
    return float((as_far.sum() + extra) / (len(signs) + extra))


def _other_items(name: str, items: ItemScores | None, other: ItemScores | None) -> DataError:
    keys = [each.keys if each else [] for each in (items, other)]
    shared = len(set(keys[0]) & set(keys[1]))
    return DataError(
        "the two runs were not scored on the same items",
        got=f"{name}: {len(keys[0])} and {len(keys[1])} items, {shared} shared",
        expected="the same sets and items in both",
        hint="score both on one file: crma eval --run DIR --data NAME=FILE",
    )


def _aligned(name: str, items: ItemScores, other: ItemScores) -> ItemScores:
    if set(other.keys) != set(items.keys):
        raise _other_items(name, items, other)
    place = {key: at for at, key in enumerate(other.keys)}
    order = [place[key] for key in items.keys]
    columns = {field: getattr(other, field) for field in ItemScores.model_fields}
    return ItemScores(
        **{field: [values[at] for at in order] if values else [] for field, values in columns.items()}
    )


def _difference(metric: str, first: Sets, second: Sets, counts: Mapping[str, Array]) -> Difference | None:
    names, places = [], {}
    for name, items in first.items():
        other = second[name]
        known = [
            at
            for at in range(len(items.keys))
            if weighted(items, metric)[0][at] is not None
            and weighted(other, metric)[0][at] is not None
            and not is_superseded(items, at)
        ]
        comparable = metric != "loss" or items.num_tokens == other.num_tokens
        if known and comparable:
            names.append(name)
            places[name] = known
    if not names:
        return None
    means = [
        float(np.mean([mean_of(side[name], metric, places[name]) for name in names]))
        for side in (first, second)
    ]
    replicates = np.mean(
        [
            resampled_means(first[name], metric, counts[name])
            - resampled_means(second[name], metric, counts[name])
            for name in names
        ],
        axis=0,
    )
    replicates = replicates[np.isfinite(replicates)]  # a draw may hold no item that counts
    pairs = [
        (weighted(first[name], metric)[0][at], weighted(second[name], metric)[0][at])
        for name in names
        for at in places[name]
    ]
    binary = metric in RIGHT_OR_WRONG
    wins = sum(one == 1.0 and other == 0.0 for one, other in pairs) if binary else None
    losses = sum(one == 0.0 and other == 1.0 for one, other in pairs) if binary else None
    return Difference(
        metric=metric,
        first=means[0],
        second=means[1],
        interval=percentile_interval(replicates) or (means[0] - means[1],) * 2,
        p_value=_randomised(metric, first, second, places)
        if wins is None or losses is None
        else mcnemar(wins, losses),
        num_items=len(pairs),
        only_first=wins,
        only_second=losses,
    )


def _randomised(metric: str, first: Sets, second: Sets, places: Mapping[str, list[int]]) -> float:
    parts = []
    for name, known in places.items():
        one, weights = weighted(first[name], metric)
        other, _ = weighted(second[name], metric)
        mass = np.array([weights[at] for at in known])
        change = np.array([float(one[at] or 0.0) - float(other[at] or 0.0) for at in known])
        parts.append(mass * change / (mass.sum() * len(places)))
    return randomisation_p(np.concatenate(parts))

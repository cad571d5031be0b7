"""Bootstrap intervals of scores and of the metrics of R, over the items that were scored. Imports no torch.

Items are drawn with replacement within each set, as many as there are, and the same draw serves every row of
R: the rows score the same items, so what is easy or hard about an item cancels where rows are compared.

Axis letters: b replicates, n items of one set.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13 (percentile interval). It
says how far other items of the same kind could move a number; not how far another seed or order of domains
could.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from constrained_adapters.evaluation.items import METRICS, is_superseded, weighted
from constrained_adapters.evaluation.summary import summarise
from constrained_adapters.results import ItemScores

NUM_REPLICATES = 1000
LEVEL = 0.95
Interval = tuple[float, float]
Array = NDArray[np.float64]


def draws(num_items: int, num_replicates: int = NUM_REPLICATES, seed: int = 0) -> Array:
    """Return how often each item is drawn in each replicate, shape (b, n); each row adds up to n."""
    rng = np.random.default_rng([seed, num_items])
    shares = np.full(num_items, 1.0 / num_items)
    return rng.multinomial(num_items, shares, size=num_replicates).astype(np.float64)


def resampled_means(items: ItemScores, metric: str, counts: Array) -> Array:
    """Return one metric's mean in each replicate, shape (b,); nan where no item drawn has it.

    Args:
        items: n items; superseded ones are left out.
        metric: One of :data:`~constrained_adapters.evaluation.items.METRICS`.
        counts: From :func:`draws`, shape (b, n).
    """
    found, weights = weighted(items, metric)
    known = np.array(
        [value is not None and not is_superseded(items, at) for at, value in enumerate(found)], dtype=float
    )
    values = np.array([0.0 if value is None else value for value in found])
    mass = counts * (known * np.array(weights))
    total = mass.sum(1)
    means: Array = np.divide(mass @ values, total, out=np.full(len(counts), np.nan), where=total > 0.0)
    return means


def percentile_interval(replicates: Array, level: float = LEVEL) -> Interval | None:
    """Return the interval that holds ``level`` of the replicates, or None where fewer than two are finite.

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < 2:
        return None
    low, high = np.quantile(finite, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def mean_interval(items: ItemScores, metric: str, *, seed: int = 0) -> Interval | None:
    """Return the 95 % interval of one metric's mean over a set's items, or None where there is none."""
    return percentile_interval(resampled_means(items, metric, draws(len(items.keys), seed=seed)))


def increase_interval(before: ItemScores, after: ItemScores, *, seed: int = 0) -> Interval | None:
    """Return the 95 % interval of how much a set's mean loss rose between two scorings of the same items.

    Args:
        before: n items.
        after: The same items.
        seed: Of the draws.

    Returns:
        Nats per token; None where the items differ.
    """
    if before.keys != after.keys:
        return None
    counts = draws(len(before.keys), seed=seed)
    return percentile_interval(
        resampled_means(after, "loss", counts) - resampled_means(before, "loss", counts)
    )


def summary_intervals(
    rows: Sequence[Mapping[str, ItemScores]], domains: Sequence[str], *, seed: int = 0
) -> dict[str, Interval]:
    """Return 95 % intervals of what :func:`~constrained_adapters.evaluation.summary.summarise` computes.

    Args:
        rows: For each row of R the items of every domain; row 0 is the base.
        domains: In order.
        seed: Of the draws.

    Returns:
        By entry of the summary; without those about general text, which is not drawn again. Empty where a
        cell has no items (records older than them) or a row scored other items than row 0.

    Cost: 1,000 summaries of (T + 1) × T matrices, 0.2 s for T = 3.
    """
    if any(set(domains) - set(row) for row in rows):
        return {}
    if any(row[name].keys != rows[0][name].keys for row in rows for name in domains):
        return {}
    counts = {name: draws(len(rows[0][name].keys), seed=seed) for name in domains}
    cubes = {
        metric: np.array(
            [[resampled_means(row[name], metric, counts[name]) for name in domains] for row in rows]
        )
        for metric in METRICS
    }
    found: dict[str, list[float]] = {}
    for replicate in range(NUM_REPLICATES):
        matrices = {
            metric: [
                [None if np.isnan(value) else float(value) for value in row] for row in cube[:, :, replicate]
            ]
            for metric, cube in cubes.items()
            if not np.isnan(cube[:, :, replicate]).all()
        }
        for key, value in summarise(matrices, []).items():
            found.setdefault(key, []).append(value)
    intervals = {key: percentile_interval(np.array(values)) for key, values in found.items()}
    return {key: interval for key, interval in intervals.items() if interval is not None}

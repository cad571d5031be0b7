"""What the report derives from a method's R matrices.

Row 0 of a matrix is the base and row i + 1 the model after domain i, so the score of domain j at
the moment it was learned is ``R[j + 1][j]``. Any cell may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from constrained_adapters.report.numbers import finite
from constrained_adapters.results import Matrix, MethodResult

REFERENCES = frozenset({"base", "isolation", "joint", "progressive", "separate"})
"""Recipes that are bounds, or are told the domain of what they are asked: shown, but not ranked."""

_BETWEEN_DOMAINS = frozenset({"drift_percent", "backward_transfer", "forward_transfer", "forgetting"})


def is_reference(method: MethodResult) -> bool:
    """Whether a method is a bound to compare with and no contestant."""
    return bool(REFERENCES & set(method.recipe.split(" + ")))


def contestants(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """Return the methods that are ranked: all but the references, or all where nothing else is there."""
    return [method for method in methods if not is_reference(method)] or list(methods)


def focus_method(methods: Sequence[MethodResult]) -> MethodResult:
    """Return the method the report speaks about: the first ``crma``, else the one that drifted least."""
    ranked = contestants(methods)
    own = [method for method in ranked if method.recipe == "crma"]
    return own[0] if own else min(ranked, key=lambda method: _or_infinity(summary(method, "drift_percent")))


def summary(method: MethodResult, key: str) -> float | None:
    """Return one number of a method's summary, or None where it is missing, not finite or says nothing.

    With one domain, what later domains did to earlier ones is 0 by definition and not a result.
    """
    if len(method.domains) < 2 and key in _BETWEEN_DOMAINS:
        return None
    return finite(method.summary.get(key))


def cell(matrix: Matrix, row: int, domain: int) -> float | None:
    """Return ``matrix[row][domain]``, or None where the cell is missing or not finite."""
    if row >= len(matrix) or domain >= len(matrix[row]):
        return None
    return finite(matrix[row][domain])


def drift_percent(losses: Matrix, row: int, domain: int) -> float | None:
    """Return how much a domain's loss has risen, in percent, since that domain was learned.

    Formula: ``100 · (L[row][domain] / L[domain + 1][domain] − 1)``, for ``row > domain``; negative
    where later domains helped. None before the domain was learned or where a cell is missing.
    """
    now, learned = cell(losses, row, domain), cell(losses, domain + 1, domain)
    if row <= domain or now is None or learned is None or learned <= 0:
        return None
    return 100 * (now / learned - 1)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, or None where there is none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def row_mean(method: MethodResult, metric: str, row: int) -> float | None:
    """Return the mean over all domains of one row of R."""
    matrix = method.matrices.get(metric, [])
    return mean(cell(matrix, row, domain) for domain in range(len(method.domains)))


def loss_cut_percent(method: MethodResult) -> float | None:
    """Return how much learning cut each domain's loss against the base's, in percent, averaged."""
    losses = method.matrices.get("loss", [])
    cuts = []
    for domain in range(len(method.domains)):
        before, after = cell(losses, 0, domain), cell(losses, domain + 1, domain)
        if before is not None and after is not None and before > 0:
            cuts.append(100 * (1 - after / before))
    return mean(cuts)


@dataclass(frozen=True)
class Plasticity:
    """How well each method learned, in percent, and in which measure.

    Args:
        label: The measure, as an axis title.
        short: The measure, as the end of a sentence.
        values: Per method's name; None where it was not measured.
        margin: Differences below this many points are put down to chance.
    """

    label: str
    short: str
    values: dict[str, float | None]
    margin: float


def plasticity(methods: Sequence[MethodResult]) -> Plasticity:
    """Choose the measure of learning that all methods share.

    Exact match where answers have one; on running text, the cut in loss.
    """
    learned = {method.name: summary(method, "learned") for method in methods}
    ranked = contestants(methods)
    if all(learned[m.name] is not None for m in ranked) and any(learned[m.name] for m in ranked):
        in_percent = {name: None if value is None else 100 * value for name, value in learned.items()}
        margin = chance_margin_points(methods[0])
        return Plasticity("exact match right after learning", "exact match", in_percent, margin or 0.05)
    cuts = {method.name: loss_cut_percent(method) for method in methods}
    return Plasticity("loss cut by learning", "of the base's loss removed", cuts, 0.05)


def chance_margin_points(method: MethodResult) -> float | None:
    """Return the half width of the 95 % interval of an average accuracy, in points.

    Worst case p = 1/2: 100 · 1.96 · √(¼ / n), n the test items of all domains together. The
    methods answer the same items, so the true margin of a difference is near this or below it.
    """
    items = sum(record.num_test for record in method.records)
    return 100 * 1.96 * math.sqrt(0.25 / items) if items else None


def perplexities(method: MethodResult) -> list[float | None]:
    """Return the perplexity on general text after 0, 1 … T domains: exp of the mean loss in nats."""
    losses = [finite(nats) for nats in method.general_nats]
    return [None if nats is None or nats > MAX_NATS else math.exp(nats) for nats in losses]


MAX_NATS = 700.0
"""Beyond this the perplexity is no longer a float; a model that bad has none worth writing."""


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value

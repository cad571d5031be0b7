"""The method that the report speaks about against each other one, item by item."""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.significance import Difference, paired_differences
from constrained_adapters.report.measures import focus_method
from constrained_adapters.report.numbers import decimal
from constrained_adapters.results import MethodResult

_TITLES = {
    "loss": "Loss, nats",
    "exact_match": "Exact match, points",
    "choice_accuracy": "Choice accuracy, points",
    "token_f1": "Token F1, points",
}


def paired_rows(methods: Sequence[MethodResult]) -> list[list[str]]:
    """Return rows of: the other method, metric, difference, its interval, p, items.

    Empty where there is one method, records hold no items, or methods were scored on other items.
    """
    rows = []
    focus = focus_method(methods) if methods else None
    for other in methods:
        if focus is None or other is focus or not (focus.items and other.items):
            continue
        try:
            differences = paired_differences(focus.items, other.items)
        except DataError:  # of another run, on other items
            continue
        rows += [_row(other.name, difference) for difference in differences]
    return rows


def _row(other: str, difference: Difference) -> list[str]:
    factor, digits = (1.0, 3) if difference.metric == "loss" else (100.0, 1)
    low, high = difference.interval
    middle, low_text, high_text = (
        decimal(factor * value, digits, sign=True) for value in (difference.difference, low, high)
    )
    p_value = "< 0.001" if difference.p_value < 0.001 else decimal(difference.p_value, 3)
    return [
        other,
        _TITLES[difference.metric],
        middle,
        f"{low_text} … {high_text}",
        p_value,
        f"{difference.num_items:,}",
    ]

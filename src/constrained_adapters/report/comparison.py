"""The table of all methods: one row each, the best of every column marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from constrained_adapters.report.measures import contestants, is_reference, row_mean, summary
from constrained_adapters.report.numbers import MISSING, decimal, finite, percent, ratio, seconds, size
from constrained_adapters.results import MethodResult


@dataclass(frozen=True)
class Column:
    """One quantity: how it is titled, explained, computed, written and ranked.

    Args:
        title: Short heading.
        unit: What follows the heading in small print, or "".
        meaning: One line for the list under the table.
        value: The number that ranks a method.
        text: How it is written.
        better: ``"low"``, ``"high"``, or ``""`` where there is nothing to rank.
        key: Of the summary, where the quantity is one of its entries that have intervals.
    """

    title: str
    unit: str
    meaning: str
    value: Callable[[MethodResult], float | None]
    text: Callable[[MethodResult], str]
    better: str = ""
    key: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell as shown; ``best`` where no ranked method has a better value; ``interval`` of 95 %, or ""."""

    text: str
    best: bool = False
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One method; ``index`` picks its colour, None for the untrained base."""

    name: str
    recipe: str
    reference: bool
    cells: list[Cell]
    index: int | None = None
    anchor: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole table."""

    columns: list[Column]
    rows: list[Row] = field(default_factory=list)

    @property
    def has_best(self) -> bool:
        """Whether any cell is marked as the best."""
        return any(cell.best for row in self.rows for cell in row.cells)

    @property
    def has_intervals(self) -> bool:
        """Whether any cell has an interval beside it."""
        return any(cell.interval for row in self.rows for cell in row.cells)

    @property
    def has_references(self) -> bool:
        """Whether any method is not ranked."""
        return any(row.reference and row.anchor for row in self.rows)


def compare(methods: Sequence[MethodResult]) -> Comparison:
    """Build the table: the base first, then the methods in the order of the run.

    A column marks its best value among the ranked methods, compared as written, so that equal
    texts are never ranked apart; nothing is marked where all are equal or only one is ranked.
    """
    columns = [column for column in COLUMNS if any(column.text(method) != MISSING for method in methods)]
    best = [_best_texts(column, contestants(methods)) for column in columns]
    rows = []
    for index, method in enumerate(methods):
        cells = [
            Cell(
                text := column.text(method),
                best=not is_reference(method) and text in winners,
                interval=_interval(method, column.key),
            )
            for column, winners in zip(columns, best, strict=True)
        ]
        rows.append(
            Row(method.name, method.recipe, is_reference(method), cells, index, f"method-{index + 1}")
        )
    base = [_base_row(methods[0], columns)] if methods else []
    return Comparison(columns, [*base, *rows])


def _best_texts(column: Column, ranked: Sequence[MethodResult]) -> set[str]:
    values = [
        (value, column.text(method)) for method in ranked if (value := column.value(method)) is not None
    ]
    if not column.better or len({text for _, text in values}) < 2:
        return set()
    pick = min if column.better == "low" else max
    return {pick(values)[1]}


def _base_row(method: MethodResult, columns: Sequence[Column]) -> Row:
    """The untrained model's row: what was scored before the first domain."""
    known = {
        "Final accuracy": ratio(row_mean(method, "exact_match", 0)),
        "Choice accuracy": ratio(row_mean(method, "choice_accuracy", 0)),
        "Token F1": ratio(row_mean(method, "token_f1", 0)),
        "General perplexity": decimal(summary(method, "general_perplexity_base")),
    }
    return Row(
        "base, untrained", "base", True, [Cell(known.get(column.title, MISSING)) for column in columns]
    )


def _interval(method: MethodResult, key: str) -> str:
    """``low … high`` as the value is written, without its unit."""
    if key not in method.intervals or summary(method, key) is None:
        return ""
    factor = 1.0 if key == "drift_percent" else 100.0
    signed = key in {"drift_percent", "backward_transfer", "forward_transfer"}
    low, high = (decimal(factor * end, 1, sign=signed) for end in method.intervals[key])
    return f"{low} … {high}"


def _get(key: str) -> Callable[[MethodResult], float | None]:
    return lambda method: summary(method, key)


def _points(key: str) -> Callable[[MethodResult], str]:
    def text(method: MethodResult) -> str:
        value = summary(method, key)
        return decimal(None if value is None else 100 * value, 1, sign=key != "forgetting")

    return text


def _total_seconds(method: MethodResult) -> float | None:
    parts = [summary(method, key) for key in ("train_seconds", "memory_seconds")]
    return None if parts[0] is None else sum(part for part in parts if part is not None)


def _perplexity_ratio(method: MethodResult) -> float | None:
    before, after = summary(method, "general_perplexity_base"), summary(method, "general_perplexity")
    return finite(after / before) if before and after is not None else None


def _perplexity_text(method: MethodResult) -> str:
    if _perplexity_ratio(method) is None:
        return MISSING
    before, after = summary(method, "general_perplexity_base"), summary(method, "general_perplexity")
    return f"{decimal(before)} → {decimal(after)}"


def _keeps_text(method: MethodResult) -> str:
    value = summary(method, "keeps_old_data")
    return MISSING if value is None else "yes" if value > 0 else "no"


COLUMNS = [
    Column(
        "Drift",
        "",
        "How much the loss on finished domains rose on average since each was learned; below zero it fell.",
        _get("drift_percent"),
        lambda method: percent(summary(method, "drift_percent"), sign=True),
        "low",
        "drift_percent",
    ),
    Column(
        "Final accuracy",
        "",
        "Exact match over all domains after the last one.",
        _get("accuracy"),
        lambda method: ratio(summary(method, "accuracy")),
        "high",
        "accuracy",
    ),
    Column(
        "Learned",
        "",
        "Exact match on each domain right after it was learned.",
        _get("learned"),
        lambda method: ratio(summary(method, "learned")),
        "high",
        "learned",
    ),
    Column(
        "BWT",
        "points",
        "Backward transfer: mean change of exact match on earlier domains since each was learned.",
        _get("backward_transfer"),
        _points("backward_transfer"),
        "high",
        "backward_transfer",
    ),
    Column(
        "Forgetting",
        "points",
        "Mean fall of exact match from each domain’s best moment to the end.",
        _get("forgetting"),
        _points("forgetting"),
        "low",
        "forgetting",
    ),
    Column(
        "Choice accuracy",
        "",
        "The right answer is the likeliest of the listed choices; does not depend on the answer’s form.",
        _get("choice_accuracy"),
        lambda method: ratio(summary(method, "choice_accuracy")),
        "high",
        "choice_accuracy",
    ),
    Column(
        "Token F1",
        "",
        "Words shared by what is written and the reference, over all domains after the last one.",
        _get("token_f1"),
        lambda method: ratio(summary(method, "token_f1")),
        "high",
        "token_f1",
    ),
    Column(
        "Plasticity",
        "of LoRA’s",
        "Learned, in percent of what plain LoRA learned.",
        _get("plasticity_percent"),
        lambda method: percent(summary(method, "plasticity_percent"), 0),
        "high",
    ),
    Column(
        "Intransigence",
        "points",
        "How far Learned stays below what joint training reaches; below zero it learned more.",
        _get("intransigence"),
        _points("intransigence"),
        "low",
    ),
    Column(
        "Superseded, kept",
        "",
        "Facts that a later domain replaces and that are still given the old way: this forgetting is meant.",
        _get("superseded_kept"),
        lambda method: ratio(summary(method, "superseded_kept")),
    ),
    Column(
        "General perplexity",
        "base → final",
        "On general text that no domain contains; lower is better.",
        _perplexity_ratio,
        _perplexity_text,
        "low",
    ),
    Column(
        "Time",
        "",
        "Training and memory updates together, without evaluation.",
        _total_seconds,
        lambda method: seconds(_total_seconds(method)),
        "low",
    ),
    Column(
        "Kept per domain",
        "",
        "What stays on disk for each finished domain: adapter, memory and any data.",
        _get("bytes_per_domain"),
        lambda method: size(summary(method, "bytes_per_domain")),
        "low",
    ),
    Column(
        "Old data kept",
        "",
        "Whether examples of finished domains are stored and trained on again.",
        _get("keeps_old_data"),
        _keeps_text,
    ),
]

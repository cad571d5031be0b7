"""An assessment in the terminal: R, its metrics, and each set with the base beside what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from constrained_adapters.evaluation.intervals import Interval
from constrained_adapters.evaluation.items import joined
from constrained_adapters.evaluation.significance import Difference, paired_differences
from constrained_adapters.report.numbers import MISSING, decimal, ratio
from constrained_adapters.results import Assessment, Estimate, SetScores

SHARES = frozenset({"exact_match", "choice_accuracy", "token_f1"})
SUMMARY = {
    "accuracy": ("ACC (exact match)", True),
    "backward_transfer": ("BWT", True),
    "forward_transfer": ("FWT", True),
    "forgetting": ("forgetting", True),
    "learned": ("learned", True),
    "choice_accuracy": ("choice accuracy", True),
    "token_f1": ("token F1", True),
    "superseded_kept": ("superseded facts still given (to fall is meant)", True),
    "drift_percent": ("drift %", False),
    "general_perplexity_base": ("general perplexity, base", False),
    "general_perplexity": ("general perplexity", False),
    "general_change_percent": ("general perplexity, change %", False),
}
"""Entry → (what it is called, whether it is a share of 0 … 1)."""


def print_assessment(found: Assessment, console: Console | None = None) -> None:
    """Print what was measured, widest first; intervals are of 95 %, over items."""
    console = console or Console(highlight=False, markup=False)
    console.print(Text(f"\n{found.title}", style="bold"))
    for metric, matrix in found.matrices.items():
        table = _table(["R", *found.domains])
        for name, row in zip(["base", *(f"after {name}" for name in found.domains)], matrix, strict=True):
            table.add_row(name, *(_text(metric, cell) for cell in row))
        console.print(f"\n{_title(metric)}: rows as the sequence went, columns what is asked")
        console.print(table)
    if found.summary:
        table = _table(["metric of R", "value", "95 % interval"])
        for key, (title, share) in SUMMARY.items():
            if key in found.summary:
                low, high = found.intervals.get(key, (None, None))
                texts = [_number(value, share) for value in (found.summary[key], low, high)]
                table.add_row(title, texts[0], MISSING if low is None else f"{texts[1]} … {texts[2]}")
        console.print()
        console.print(table)
    if found.sets:
        console.print(f"\nSets: {' against '.join(found.models)}, 95 % intervals over items")
        console.print(_sets_table(found))
    if found.tasks:
        table = _table(["task", "metric", "items", *found.models])
        for line in found.tasks:
            cells = [_estimate(line.metric, line.scores.get(model)) for model in found.models]
            table.add_row(line.task, line.metric, str(line.num_items or MISSING), *cells)
        console.print("\nTasks of lm-evaluation-harness (± 1.96 standard errors)")
        console.print(table)
    for note in found.notes:
        console.print(f"\nNote: {note}", soft_wrap=True)
    console.print()


def print_differences(
    first: str, second: str, found: Sequence[Difference], console: Console | None = None
) -> None:
    """Print two models' paired comparison."""
    console = console or Console(highlight=False, markup=False)
    table = _table(["metric", "first", "second", "difference", "p", "items", "wins"])
    for each in found:
        wins = MISSING if each.only_first is None else f"{each.only_first} : {each.only_second}"
        table.add_row(
            _title(each.metric),
            _text(each.metric, each.first),
            _text(each.metric, each.second),
            _with_interval(each.metric, each.difference, each.interval, signed=True),
            _p(each.p_value),
            str(each.num_items),
            wins,
        )
    console.print(f"\nfirst: {first}\nsecond: {second}", soft_wrap=True)
    console.print("on the same items, each set counting the same")
    console.print(table)


def _sets_table(found: Assessment) -> Table:
    last = found.models[-1]
    table = _table(["set", "items", "metric", *found.models, *(["p"] if len(found.models) > 1 else [])])
    for each in found.sets:
        metrics = list(dict.fromkeys(m for scores in each.scores.values() for m in scores))
        if each.group != "general":  # R has it
            metrics = [metric for metric in metrics if metric != "perplexity"]
        p_values = _p_values(found, each)
        for number, metric in enumerate(metrics):
            others = [each.scores[model].get(metric) for model in found.models[:-1]]
            cells = [MISSING if other is None else _text(metric, other.value) for other in others]
            start = [each.name, str(each.num_items)] if number == 0 else ["", ""]
            ends = [p_values.get(metric, "")] if others else []
            table.add_row(
                *start, _title(metric), *cells, _estimate(metric, each.scores[last].get(metric)), *ends
            )
    return table


def _p_values(found: Assessment, each: SetScores) -> Mapping[str, str]:
    """Of the second model against the first on one set, its items weighed alike."""
    known = [found.items.get(model, {}) for model in found.models[:2]]
    if len(known) < 2 or any(part not in items for items in known for part in each.parts):
        return {}
    before, after = ({each.name: joined({part: items[part] for part in each.parts})} for items in known)
    differences = paired_differences(after, before)
    return {difference.metric: _p(difference.p_value) for difference in differences}


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _title(metric: str) -> str:
    name = metric.removeprefix("superseded_")
    title = {"token_f1": "token F1"}.get(name, name.replace("_", " "))
    return title if name == metric else f"superseded: {title}"


def _is_share(metric: str) -> bool:
    return metric.removeprefix("superseded_") in SHARES


def _text(metric: str, value: float | None) -> str:
    return ratio(value) if _is_share(metric) else decimal(value, 3)


def _number(value: float | None, share: bool) -> str:
    return ratio(value) if share else decimal(value, 2)


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _estimate(metric: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    if estimate.low is None or estimate.high is None:
        return _text(metric, estimate.value)
    return _with_interval(metric, estimate.value, (estimate.low, estimate.high))


def _with_interval(metric: str, value: float, interval: Interval, *, signed: bool = False) -> str:
    """A value and its interval; a difference of shares is in points, and the bracket repeats no unit."""
    factor, digits = (100.0, 1) if _is_share(metric) else (1.0, 3)
    unit = "" if not _is_share(metric) else " pts" if signed else " %"
    low, middle, high = (
        decimal(factor * each, digits, sign=signed) for each in (interval[0], value, interval[1])
    )
    return f"{middle}{unit} [{low}, {high}]"

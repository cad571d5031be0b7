"""The comparison of a finished run in the terminal: as many tables as its width asks for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from constrained_adapters.report.comparison import Cell, compare
from constrained_adapters.report.measures import cell, contestants
from constrained_adapters.report.numbers import ratio
from constrained_adapters.results import MethodResult, RunResult

BEST = " *"
GAP = 2  # one of padding, one that the box draws between columns


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: Sequence[Cell]

    @property
    def width(self) -> int:
        """Terminal cells that the widest entry or word takes, its mark included."""
        entries = [*self.heading.split(), *(each.text + BEST for each in self.cells)]
        return max(cell_len(entry) for entry in entries)


def print_result(result: RunResult, console: Console | None = None) -> None:
    """Print what the report's table says, and the final accuracy on each domain; ``*`` marks the best."""
    console = console or Console(highlight=False)
    comparison = compare(result.methods)
    names = [row.name for row in comparison.rows]
    columns = [
        _Column(f"{column.title} {column.unit}".strip(), [row.cells[i] for row in comparison.rows])
        for i, column in enumerate(comparison.columns)
    ]
    console.print(Text(f"\n{result.title}", style="bold"))
    _print_table(console, names, columns)
    finals = _final_accuracies(result.methods)
    if finals:
        console.print("Exact match on each domain after the last one")
        _print_table(console, [method.name for method in result.methods], finals)
    if any(each.best for column in [*columns, *finals] for each in column.cells):
        console.print("* best of its column\n")


def _final_accuracies(methods: Sequence[MethodResult]) -> list[_Column]:
    domains = methods[0].domains if methods else []
    ranked = contestants(methods)
    columns = []
    for name in domains:
        values = {method.name: _final(method, name) for method in methods}
        texts = [ratio(values[method.name]) for method in methods]
        contest = [value for method in ranked if (value := values[method.name]) is not None]
        best = ratio(max(contest)) if len({ratio(value) for value in contest}) > 1 else None
        marks = [method in ranked and text == best for method, text in zip(methods, texts, strict=True)]
        columns.append(_Column(name, [Cell(*pair) for pair in zip(texts, marks, strict=True)]))
    return columns


def _final(method: MethodResult, domain: str) -> float | None:
    matrix = method.matrices.get("exact_match", [])
    return (
        cell(matrix, len(matrix) - 1, method.domains.index(domain))
        if matrix and domain in method.domains
        else None
    )


def _print_table(console: Console, names: Sequence[str], columns: Sequence[_Column]) -> None:
    first = max(cell_len(name) for name in ["method", *names])
    rest = list(columns)
    while rest:
        taken, width = [rest.pop(0)], first
        while rest and width + sum(c.width + GAP for c in [*taken, rest[0]]) <= console.width:
            taken.append(rest.pop(0))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("method", no_wrap=True)
        for column in taken:
            heading = textwrap.fill(column.heading, column.width, break_long_words=False)
            table.add_column(Text(heading), justify="right", no_wrap=True, vertical="bottom")
        for index, name in enumerate(names):
            table.add_row(Text(name), *(_shown(column.cells[index]) for column in taken))
        console.print(table)
        console.print()


def _shown(each: Cell) -> Text:
    return Text(each.text + BEST, style="bold green") if each.best else Text(f"{each.text}  ")

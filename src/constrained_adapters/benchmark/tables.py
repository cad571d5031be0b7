"""Tables and the figure of a benchmark, from the JSON of its cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constrained_adapters.benchmark.cells import setting_label, sweep_cells, table_cells
from constrained_adapters.benchmark.choice import RULE, chosen_settings
from constrained_adapters.benchmark.figure import pareto_figure
from constrained_adapters.benchmark.measures import COLUMNS, Column
from constrained_adapters.benchmark.plan import Plan, Setting
from constrained_adapters.benchmark.spread import Estimate, estimate
from constrained_adapters.benchmark.store import CellResult, Store
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.report.measures import is_reference
from constrained_adapters.report.numbers import MISSING, decimal
from constrained_adapters.results import MethodResult
from constrained_adapters.workspace import atomic_write_json, atomic_write_text

SCHEMA_VERSION = 1
SEQUENTIAL_LORA = "lora"


@dataclass(frozen=True)
class Row:
    """One method over all its finished cells.

    Args:
        method: Its name.
        recipe: Its recipe.
        reference: Whether it is a bound and not ranked.
        keeps_old_data: Whether it keeps examples of finished domains.
        setting: The chosen one.
        num_cells: How many cells it has.
        estimates: By the column's key; None where no cell has the number.
    """

    method: str
    recipe: str
    reference: bool
    keeps_old_data: bool
    setting: Setting
    num_cells: int
    estimates: dict[str, Estimate | None]


def write_tables(plan: Plan, store: Store) -> Path | None:
    """Write ``table.md``, ``table.json`` and ``pareto.svg`` into ``tables/``.

    Returns:
        The Markdown file; None where no cell of the test is finished.

    Raises:
        WorkspaceError: A cell is damaged, or the cells are not all of one base.
    """
    cells = [store.read(c) for c in table_cells(plan, chosen_settings(plan, store)) if store.is_done(c)]
    if not cells:
        return None
    _refuse_several_bases(cells)
    rows = table_rows(cells)
    figure = pareto_figure(rows)
    atomic_write_json(store.tables / "table.json", _as_json(plan, cells, rows))
    atomic_write_text(store.tables / "table.md", markdown(plan, cells, rows, with_figure=figure is not None))
    if figure is not None:
        atomic_write_text(store.tables / "pareto.svg", figure)
    return store.tables / "table.md"


def table_rows(cells: Sequence[CellResult]) -> list[Row]:
    """One row for each method, in the order of the cells."""
    lora = {
        (cell.order, cell.seed): cell.result
        for cell in reversed(cells)
        if cell.result.recipe == SEQUENTIAL_LORA  # the first of them, where it stands twice
    }
    return [
        _row([cell for cell in cells if cell.method == name], lora)
        for name in dict.fromkeys(cell.method for cell in cells)
    ]


def _row(cells: Sequence[CellResult], lora: dict[tuple[int, int], MethodResult]) -> Row:
    first = cells[0].result
    estimates = {
        column.key: estimate([column.value(cell.result, lora.get((cell.order, cell.seed))) for cell in cells])
        for column in COLUMNS
    }
    return Row(
        method=cells[0].method,
        recipe=first.recipe,
        reference=is_reference(first),
        keeps_old_data=first.summary.get("keeps_old_data", 0.0) > 0,
        setting=cells[0].setting,
        num_cells=len(cells),
        estimates=estimates,
    )


def markdown(plan: Plan, cells: Sequence[CellResult], rows: Sequence[Row], *, with_figure: bool) -> str:
    """The table with what a reader needs to judge it."""
    columns = [column for column in COLUMNS if any(row.estimates[column.key] for row in rows)]
    headings = ["Method", *(column.title for column in columns), "Old data kept", "Cells", "Setting"]
    lines = [f"# {plan.title}", "", _line(headings), _line(["---", *["---:"] * (len(headings) - 2), "---"])]
    for row in rows:
        texts = [_text(column, row.estimates[column.key]) for column in columns]
        name = f"*{row.method}* (reference)" if row.reference else row.method
        kept = "yes" if row.keeps_old_data else "no"
        setting = setting_label(row.setting).replace(",", ", ") if row.setting else MISSING
        lines.append(_line([name, *texts, kept, str(row.num_cells), setting]))
    if with_figure:
        caption = (
            "Drift in % over what was learned; up and right is better. Dashed: the front; open: references."
        )
        lines += ["", "![Retention against plasticity](pareto.svg)", "", caption]
    lines += ["", *(f"- **{column.title}**: {column.meaning}." for column in columns), ""]
    return "\n".join([*lines, *_notes(plan, cells, rows), ""])


def _notes(plan: Plan, cells: Sequence[CellResult], rows: Sequence[Row]) -> list[str]:
    items = sum(record.num_test for record in cells[0].result.records)
    notes = [
        f"Each cell is one order of {len(plan.domains)} domains with one seed: {items:,} test items.",
        "In parentheses the spread over cells: the range of two, from three on the 95 % bootstrap interval "
        "of the mean; without parentheses there is one cell.",
        f"Settings: {RULE}." if sweep_cells(plan) else "No setting was swept.",
    ]
    if len({row.num_cells for row in rows}) > 1:
        notes.append(
            "Not all methods have all cells yet: rows with different numbers of cells do not compare."
        )
    devices = sorted({f"{cell.environment['device']}, {_threads(cell)}" for cell in cells})
    alike = "Device" if len(devices) == 1 else "Cells are from several devices, so their times do not compare"
    notes.append(f"{alike}: {'; '.join(devices)}. Base: {cells[0].base.get('model')}.")
    return notes


def _threads(cell: CellResult) -> str:
    count = cell.environment.get("num_threads")
    return f"{count} thread{'s' * (count != 1)}"


def _text(column: Column, value: Estimate | None) -> str:
    if value is None:
        return MISSING
    mean = decimal(value.mean, column.digits, sign=column.sign)
    if value.low is None:
        return mean
    ends = (decimal(end, column.digits, sign=column.sign) for end in (value.low, value.high))
    return f"{mean} ({'…'.join(ends)})"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '∣') for text in texts)} |"


def _as_json(plan: Plan, cells: Sequence[CellResult], rows: Sequence[Row]) -> dict[str, Any]:
    environments = {str(sorted(cell.environment.items())): cell.environment for cell in cells}
    return {
        "schema_version": SCHEMA_VERSION,
        "title": plan.title,
        "base": cells[0].base,
        "environments": list(environments.values()),
        "orders": plan.orders,
        "seeds": sorted({cell.seed for cell in cells}),
        "columns": [{"key": c.key, "title": c.title, "meaning": c.meaning} for c in COLUMNS],
        "rows": [
            {
                "method": row.method,
                "recipe": row.recipe,
                "reference": row.reference,
                "keeps_old_data": row.keeps_old_data,
                "setting": row.setting,
                "num_cells": row.num_cells,
                "values": {key: _estimate_json(value) for key, value in row.estimates.items()},
            }
            for row in rows
        ],
    }


def _estimate_json(value: Estimate | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "low": value.low, "high": value.high, "cells": list(value.values)}


def _refuse_several_bases(cells: Sequence[CellResult]) -> None:
    by_base = {cell.base.get("fingerprint"): cell for cell in reversed(cells)}
    if len(by_base) > 1:
        shown = [
            f"{fingerprint} ({cell.method}, order {cell.order}, seed {cell.seed})"
            for fingerprint, cell in list(by_base.items())[:2]
        ]
        raise WorkspaceError(
            "the cells are of different bases",
            got="; ".join(shown),
            expected="one base for all",
            hint="remove the cells of the wrong one and run them again",
        )

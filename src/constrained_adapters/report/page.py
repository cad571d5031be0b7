"""Write the report of a run as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from constrained_adapters.report.assessed import assessed
from constrained_adapters.report.before import before_training
from constrained_adapters.report.changes import language_tag
from constrained_adapters.report.charts import Chart, Drawing
from constrained_adapters.report.comparison import compare
from constrained_adapters.report.measures import (
    contestants,
    focus_method,
    is_reference,
    plasticity,
    row_mean,
    summary,
)
from constrained_adapters.report.numbers import MISSING, decimal, percent, ratio, seconds
from constrained_adapters.report.pairs import paired_rows
from constrained_adapters.report.pareto import Point, pareto_chart
from constrained_adapters.report.sections import section
from constrained_adapters.report.svg import NUM_COLOURS
from constrained_adapters.report.verdict import noise_note, verdict
from constrained_adapters.results import Assessment, MethodResult, RunResult
from constrained_adapters.workspace import atomic_write_text

Table = tuple[list[str], list[list[str]]]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def write_report(result: RunResult, path: Path, assessments: Sequence[Assessment] = ()) -> None:
    """Write the report of ``result`` to ``path``, whole or not at all.

    Args:
        result: Of a run, or of several in one.
        path: The file.
        assessments: What ``crma eval`` measured afterwards.

    Raises:
        OSError: The folder cannot be written to.
    """
    atomic_write_text(path, render_report(result, assessments))


def render_report(result: RunResult, assessments: Sequence[Assessment] = ()) -> str:
    """Return the report as one HTML document.

    Equal results give equal bytes. Names, samples and settings are untrusted text: all of it is
    escaped, and the page's content security policy forbids every script and every request.
    """
    environment = Environment(
        loader=PackageLoader("constrained_adapters.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["data_language"] = lambda text: language_tag(text) is not None
    environment.filters["language"] = language_tag
    environment.filters["readable_date"] = readable_date
    focus = focus_method(result.methods) if result.methods else None
    style = (
        resources.files("constrained_adapters.report")
        .joinpath("templates/report.css")
        .read_text(encoding="utf-8")
    )
    return environment.get_template("report.html.j2").render(
        result=result,
        style=style,
        created=readable_date(result.created),
        before=before_training(result.diagnosis),
        assessed=[assessed(each) for each in assessments],
        verdict=verdict(result),
        noise_note=noise_note(result),
        tiles=_tiles(focus) if focus else [],
        focus=focus,
        comparison=compare(result.methods),
        paired=paired_rows(result.methods),
        pareto=_pareto(result),
        sections=[section(index, method, result.methods) for index, method in enumerate(result.methods)],
        ledger=_ledger_table(result.ledger),
        details=[
            ("Base model", flattened(result.base)),
            ("Settings of the run", flattened(result.settings)),
            *((f"Settings of {method.name}", flattened(method.settings)) for method in result.methods),
            ("Environment", flattened(result.environment)),
        ],
        num_colours=NUM_COLOURS,
    )


def flattened(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of dotted name and value.

    >>> flattened({"a": {"b": 1, "c": None}, "d": [1, 2]})
    [('a.b', '1'), ('a.c', 'none'), ('d', '1, 2')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flattened(value, f"{name}.") or [(name, "(empty)")]
        elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
            rows += flattened({str(at + 1): item for at, item in enumerate(value)}, f"{name}.")
        else:
            rows.append((name, _plain(value)))
    return rows


def readable_date(created: str) -> str:
    """Return an ISO 8601 time in words, or the text itself where it is none.

    >>> readable_date("2026-11-21T18:30:00+00:00"), readable_date("yesterday")
    ('21 November 2026, 18:30 UTC', 'yesterday')
    """
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{at.day} {_MONTHS[at.month - 1]} {at:%Y, %H:%M} {at.tzname() or ''}".rstrip()


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "(empty)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ledger_table(ledger: list[dict[str, Any]]) -> Table:
    """One row per entry; columns in the order in which keys first appear."""
    columns = list(dict.fromkeys(key for entry in ledger for key in entry))

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else _plain(value)

    return columns, [[text(entry[key]) if key in entry else "" for key in columns] for entry in ledger]


def _tiles(method: MethodResult) -> list[tuple[str, str, str]]:
    """The few numbers to see first: (what, value, beside what)."""
    tiles = []
    if (drift := summary(method, "drift_percent")) is not None and len(method.domains) > 1:
        tiles.append(("Drift", percent(drift, sign=True), "loss on finished domains since each was learned"))
    if (accuracy := summary(method, "accuracy")) is not None:
        base = ratio(row_mean(method, "exact_match", 0))
        tiles.append(("Final accuracy", ratio(accuracy), f"exact match; the base had {base}"))
    if (choice := summary(method, "choice_accuracy")) is not None:
        base = ratio(row_mean(method, "choice_accuracy", 0))
        tiles.append(("Choice accuracy", ratio(choice), f"right choice likeliest; the base had {base}"))
    before, after = summary(method, "general_perplexity_base"), summary(method, "general_perplexity")
    if before and after is not None:
        tiles.append(
            ("General perplexity", decimal(after), f"the base had {decimal(before)}; lower is better")
        )
    if (spent := summary(method, "train_seconds")) is not None:
        memory = seconds(summary(method, "memory_seconds"))
        tiles.append(
            ("Training", seconds(spent), f"for all domains; memories {memory}" if memory != MISSING else "")
        )
    return tiles[:4]


def _pareto(result: RunResult) -> Drawing | None:
    if len(contestants(result.methods)) < 2 and len(result.methods) < 2:
        return None
    learned = plasticity(result.methods)
    points = []
    for index, method in enumerate(result.methods):
        x, y = learned.values.get(method.name), summary(method, "drift_percent")
        if x is not None and y is not None and len(method.domains) > 1:
            points.append(Point(method.name, index, x, y, ranked=not is_reference(method)))
    chart = Chart("pareto", "Retention against plasticity", "drift in %; up and right is better", height=300)
    return pareto_chart(chart, points, learned.label)

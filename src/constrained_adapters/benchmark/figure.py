"""The figure of a benchmark: retention against plasticity, one marker a method, as an SVG file of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from constrained_adapters.report.charts import WIDTH, Chart
from constrained_adapters.report.pareto import Point, pareto_chart

if TYPE_CHECKING:
    from constrained_adapters.benchmark.tables import Row

_VARIABLES = re.compile(r"^:root \{.*?^\}\n@media[^\n]*\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
"""The colours at the head of the report's style sheet, for light and dark."""

FEW = 8
"""Methods whose names find room in a figure of one column."""


def pareto_figure(rows: Sequence[Row]) -> str | None:
    """Draw drift against plasticity; the untrained base, which learns nothing, is left out.

    Args:
        rows: Of the table. Plasticity is exact match right after learning, or the cut in loss where a
            method has no exact match or none has any.

    Returns:
        The content of an SVG file; None where fewer than two methods have both numbers.
    """
    shown = [row for row in rows if row.recipe != "base"]
    exact = all(row.estimates["learned"] for row in shown)
    key, title = (
        ("learned", "exact match right after learning") if exact else ("loss_cut_percent", "loss cut")
    )
    points = []
    for index, row in enumerate(shown):
        x, y = row.estimates[key], row.estimates["drift_percent"]
        if x is not None and y is not None:
            points.append(Point(row.method, index, x.mean, y.mean, ranked=not row.reference))
    width, height = (WIDTH, 380) if len(points) <= FEW else (2 * WIDTH, 540)
    unit = "drift in %; up and right is better"
    chart = Chart("pareto", "Retention against plasticity", unit, height=height, width=width)
    drawing = pareto_chart(chart, points, title)
    return None if drawing is None else _stand_alone(drawing.svg)


def _stand_alone(svg: str) -> str:
    """An inline figure of the report with the colours and the font that its page would give it."""
    sheet = resources.files("constrained_adapters.report").joinpath("templates/report.css")
    found = _VARIABLES.search(sheet.read_text(encoding="utf-8"))
    assert found is not None
    style = f"{found[0]}svg {{ background: var(--paper); font-family: var(--sans); }}\n"
    head, _, rest = svg.partition(">")
    return f"{head}><style>\n{style}</style>{rest}\n"

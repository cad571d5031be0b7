"""R matrices as accessible tables with coloured cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from constrained_adapters.report.measures import cell, drift_percent
from constrained_adapters.report.numbers import MISSING, decimal, finite, percent, ratio
from constrained_adapters.results import Matrix, MethodResult

METRICS = {
    "loss": ("Loss", "nats per answer token; lower is better"),
    "exact_match": ("Exact match", "share of answers that are right word for word; higher is better"),
    "choice_accuracy": (
        "Choice accuracy",
        "share of items whose right choice is the likeliest; higher is better",
    ),
    "token_f1": ("Token F1", "overlap of the written answer with the reference, 0 … 100 %; higher is better"),
    "superseded_loss": ("Superseded: loss", "of facts that a later domain replaces; it is meant to rise"),
    "superseded_exact_match": (
        "Superseded: exact match",
        "facts that a later domain replaces, still given the old way; it is meant to fall",
    ),
    "superseded_choice_accuracy": (
        "Superseded: choice accuracy",
        "facts that a later domain replaces, the old choice still the likeliest; it is meant to fall",
    ),
}
"""Metric → (title, unit). Others that a result may hold are shown after these."""


@dataclass(frozen=True)
class HeatCell:
    """One score: its text, its colour (0 … 100, None where missing) and its change since learned.

    ``stage`` is ``"ahead"`` (not yet learned), ``"learned"`` (just now) or ``"finished"``.
    """

    text: str
    shade: int | None
    change: str
    stage: str


@dataclass(frozen=True)
class HeatMap:
    """One metric of one method: rows base, after domain 1 … T; columns domains."""

    metric: str
    title: str
    unit: str
    hue: str
    low: str
    high: str
    log_scale: bool
    rows: list[tuple[str, list[HeatCell]]]


def heat_maps(method: MethodResult, methods: Sequence[MethodResult]) -> list[HeatMap]:
    """Return a heat map per metric that has at least one cell.

    Colours of one metric mean the same for every method: accuracies run from 0 to 1; losses from
    the smallest to the largest loss of the run on a logarithmic scale, so that a domain's
    forgetting is visible beside the much larger loss of the untrained base.
    """
    known = [name for name in METRICS if name in method.matrices]
    extra = sorted(set(method.matrices) - set(METRICS))
    maps = [_heat_map(name, method, [m.matrices.get(name, []) for m in methods]) for name in [*known, *extra]]
    return [heat for heat in maps if any(c.shade is not None for _, cells in heat.rows for c in cells)]


def _heat_map(metric: str, method: MethodResult, same_metric: Sequence[Matrix]) -> HeatMap:
    values = [
        value
        for other in same_metric
        for row in other
        for entry in row
        if (value := finite(entry)) is not None
    ]
    is_share = not metric.endswith("loss") and all(0 <= value <= 1 for value in values)
    low, high = (0.0, 1.0) if is_share else (min(values, default=0.0), max(values, default=1.0))
    log_scale = not is_share and low > 0
    matrix = method.matrices[metric]
    rows = []
    for row in range(len(method.domains) + 1):
        name = "base" if row == 0 else method.domains[row - 1]
        cells = []
        for domain in range(len(method.domains)):
            value = cell(matrix, row, domain)
            stage = "ahead" if row <= domain else "learned" if row == domain + 1 else "finished"
            change = _change(metric, is_share, matrix, row, domain) if stage == "finished" else ""
            text = ratio(value) if is_share else decimal(value, 3)
            cells.append(HeatCell(text, _shade(value, low, high, log_scale), change, stage))
        rows.append((name, cells))
    title, unit = METRICS.get(metric, (metric.replace("_", " ").capitalize(), ""))
    edge = ratio if is_share else decimal
    return HeatMap(
        metric,
        title,
        unit,
        "warm" if metric.endswith("loss") else "cool",
        edge(low),
        edge(high),
        log_scale,
        rows,
    )


def _shade(value: float | None, low: float, high: float, log_scale: bool) -> int | None:
    if value is None:
        return None
    if high <= low:
        return 0
    if log_scale:
        return round(100 * math.log(value / low) / math.log(high / low))
    return round(100 * (value - low) / (high - low))


def _change(metric: str, is_share: bool, matrix: Matrix, row: int, domain: int) -> str:
    """The change since the domain was learned: percent of a loss, points of a share."""
    if metric.endswith("loss"):
        text = percent(drift_percent(matrix, row, domain), sign=True)
        return "" if text == MISSING else text
    now, learned = cell(matrix, row, domain), cell(matrix, domain + 1, domain)
    if now is None or learned is None:
        return ""
    difference = now - learned
    return f"{decimal(100 * difference, 1, sign=True)} pts" if is_share else decimal(difference, sign=True)

"""Importance and change of weights by layer and kind of module, domain after domain: the importance log."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from constrained_adapters.report.charts import (
    DASHES,
    MARKERS,
    Chart,
    Drawing,
    finish,
    new_axes,
    set_margins,
)
from constrained_adapters.report.numbers import MISSING, percent
from constrained_adapters.report.svg import PAPER, drawing_style, series_colour
from constrained_adapters.report.timelines import short
from constrained_adapters.results import DomainRecord, MethodResult

TOP_LAYERS = 3
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class ByLayer:
    """What the template shows.

    Args:
        drawings: One per kind of module and measure: a line per domain over the layers.
        kinds: The kinds of module, such as ``q_proj``; headings of the log.
        log: Per domain its name, the share of its importance in each kind, and the layers with most of it.
    """

    drawings: list[Drawing]
    kinds: list[str]
    log: list[list[str]]


def by_layer(anchor: str, method: MethodResult) -> ByLayer:
    """Draw what a method's records hold of importance and change; nothing where they hold neither."""
    drawings = []
    measures = (
        ("importance", "Importance", "Fisher information per weight, logarithmic"),
        ("weight_change", "Change of weights", "norm of what the domain adds"),
    )
    for key, title, unit in measures:
        values = [(record, getattr(record, key)) for record in method.records]
        kinds = _kinds([module for _, modules in values for module in modules])
        for number, (kind, name) in enumerate(_shown(kinds).items()):
            chart = Chart(f"{anchor}-{key.replace('_', '-')}-{number}", f"{title}, {name}", unit, height=190)
            drawing = _chart(chart, kind, values, logarithmic=key == "importance")
            drawings += [drawing] if drawing else []
    kinds = _kinds([module for record in method.records for module in record.importance])
    return ByLayer(
        drawings,
        list(_shown(kinds).values()),
        [_log_row(record, kinds) for record in method.records if record.importance],
    )


def layer_and_kind(module: str) -> tuple[int, str] | None:
    """Return the number of a module's decoder layer and its name there, or None where it has no number.

    >>> layer_and_kind("model.layers.12.self_attn.q_proj")
    (12, 'self_attn.q_proj')
    """
    found = _NUMBER.search(module)
    return (int(found[1]), module[found.end() :]) if found else None


def _kinds(modules: Sequence[str]) -> list[str]:
    places = [place for module in modules if (place := layer_and_kind(module))]
    return list(dict.fromkeys(kind for _, kind in sorted(places)))


def _shown(kinds: Sequence[str]) -> dict[str, str]:
    """The last part of each kind's name, or all of it where two would look the same."""
    counts = Counter(kind.rpartition(".")[2] for kind in kinds)
    return {kind: last if counts[last := kind.rpartition(".")[2]] == 1 else kind for kind in kinds}


def _log_row(record: DomainRecord, kinds: Sequence[str]) -> list[str]:
    by_kind: dict[str, float] = defaultdict(float)
    by_number: dict[int, float] = defaultdict(float)
    for module, value in record.importance.items():
        place = layer_and_kind(module)
        if place and math.isfinite(value):
            by_number[place[0]] += value
            by_kind[place[1]] += value
    total = math.fsum(by_kind.values())
    shares = [percent(100 * by_kind[kind] / total) if total else MISSING for kind in kinds]
    most = sorted(by_number, key=lambda number: -by_number[number])[:TOP_LAYERS]
    return [record.name, *shares, ", ".join(map(str, most))]


def _chart(
    chart: Chart,
    kind: str,
    values: Sequence[tuple[DomainRecord, Mapping[str, float]]],
    *,
    logarithmic: bool,
) -> Drawing | None:
    lines = []
    for index, (record, modules) in enumerate(values):
        points = sorted(
            (place[0], value)
            for module, value in modules.items()
            if (place := layer_and_kind(module)) and place[1] == kind and math.isfinite(value)
            if value > 0 or not logarithmic
        )
        if points:
            lines.append((index, record.name, [x for x, _ in points], [y for _, y in points]))
    if not lines:
        return None
    with drawing_style(chart.figure_id):
        figure, axes = new_axes(chart)
        for index, _, xs, ys in lines:
            axes.plot(
                xs,
                ys,
                color=series_colour(index),
                linewidth=1.8,
                linestyle=DASHES[(index // len(MARKERS)) % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                markevery=max(1, len(xs) // 8),
                zorder=3,
            )
        if logarithmic:
            axes.set_yscale("log")
            axes.minorticks_off()
        axes.set_xlabel("layer")
        axes.tick_params(length=0)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        set_margins(figure, axes)
        described = "; ".join(
            f"{name}: {short(min(ys))} to {short(max(ys))}, most in layer {xs[ys.index(max(ys))]}"
            for _, name, xs, ys in lines
        )
        return finish(figure, chart, f"By layer. {described}.")

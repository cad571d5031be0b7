"""Predicted against measured forgetting: one marker per pair, with the band of forecasts that held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from constrained_adapters.evaluation.calibration import (
    BASE_NAMES,
    FACTOR,
    Pair,
    calibrate,
    measured_increases,
    pairs,
)
from constrained_adapters.report.charts import MARKERS, Chart, Drawing, finish, new_axes, set_margins
from constrained_adapters.report.numbers import decimal
from constrained_adapters.report.svg import MUTED, PAPER, drawing_style, series_colour
from constrained_adapters.results import MethodResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINEAR_NATS = 0.001
"""Up to this size the axes are linear: smaller rises are noise of the test items."""


def forecasts(method: MethodResult) -> list[Pair]:
    """All pairs of a method; what was measured is taken from its matrices, so old records have it too."""
    losses = method.matrices.get("loss", [])
    measured = {
        record.name: measured_increases(losses, method.general_nats, method.domains, number)
        for number, record in enumerate(method.records, start=1)
    }
    return pairs(
        {record.name: record.predicted_increase_nats for record in method.records},
        measured,
        {record.name: record.measured_increase_intervals for record in method.records},
    )


def forecast_sentence(found: Sequence[Pair]) -> str:
    """How well the forecasts held, in words; empty without a measured pair."""
    result = calibrate(found)
    if not result.num_pairs:
        return ""
    within = round(result.share_within * result.num_pairs)
    parts = [f"{within} of {result.num_pairs} forecasts lie within a factor of {FACTOR} of what was measured"]
    if result.num_bounded:
        inside = round(result.share_inside * result.num_bounded)
        parts.append(
            f"{inside} of {result.num_bounded} within what the scored items leave open (the lines, 95 %)"
        )
    if result.num_rising:
        parts.append(
            f"where both rise ({result.num_rising}), the median of predicted over measured is "
            f"{decimal(result.ratio, 2)}"
        )
    if math.isfinite(result.rank_correlation):
        parts.append(f"rank correlation {decimal(result.rank_correlation, 2, sign=True)}")
    return "; ".join(parts) + "."


def forecast_chart(chart: Chart, found: Sequence[Pair], domains: Sequence[str]) -> Drawing | None:
    """Draw measured (up) against predicted (right), both axes linear near 0 and logarithmic beyond.

    Args:
        chart: Title and unit.
        found: Pairs; those without a measurement are left out.
        domains: In order; a pair has the colour and marker of its finished domain.
    """
    points = [
        (pair, pair.predicted, pair.measured)
        for pair in found
        if pair.measured is not None and math.isfinite(pair.measured) and math.isfinite(pair.predicted)
    ]
    if not points:
        return None
    with drawing_style(chart.figure_id):
        figure, axes = new_axes(chart)
        ends = [abs(end) for pair, _, _ in points for end in pair.interval or ()]
        reach = 2.0 * max(LINEAR_NATS, *ends, *(max(abs(x), abs(y)) for _, x, y in points))
        _band(axes, reach)
        for pair, x, y in points:
            base = pair.finished in BASE_NAMES
            index = domains.index(pair.finished) if pair.finished in domains else len(domains)
            if pair.interval is not None:
                axes.vlines(x, *pair.interval, color=MUTED, linewidth=1.2, zorder=2)
            axes.plot(
                [x],
                [y],
                linestyle="",
                marker="o" if base else MARKERS[index % len(MARKERS)],
                markersize=8,
                color=PAPER if base else series_colour(index),
                markeredgecolor=MUTED if base else PAPER,
                markeredgewidth=1.4,
                clip_on=False,
                zorder=3,
            )
        _axes(axes, reach, points)
        set_margins(figure, axes)
        described = "; ".join(
            f"{pair.finished} while learning {pair.trained}: predicted {_nats(x)}, measured {_nats(y)}"
            for pair, x, y in points
        )
        return finish(figure, chart, f"{forecast_sentence(found)} {described}.")


def _band(axes: Axes, reach: float) -> None:
    """Shade what is within the factor, on both sides of zero, and draw the line of equal values."""
    steps = [reach * (step / 200) ** 3 for step in range(-200, 201)]
    low = [min(x * FACTOR, x / FACTOR) for x in steps]
    high = [max(x * FACTOR, x / FACTOR) for x in steps]
    axes.fill_between(steps, low, high, color=MUTED, alpha=0.16, linewidth=0, zorder=1)
    axes.plot(steps, steps, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=2)


def _axes(axes: Axes, reach: float, points: Sequence[tuple[Pair, float, float]]) -> None:
    falls = any(min(x, y, *(pair.interval or ())) < 0 for pair, x, y in points)
    top = math.floor(math.log10(reach))
    decades = [10.0**power for power in range(round(math.log10(LINEAR_NATS)), top + 1)]
    shown = decades[:: -max(1, math.ceil(len(decades) / 3))][::-1]
    ticks = [*(-value for value in reversed(shown) if falls), 0.0, *shown]
    for name in ("x", "y"):
        getattr(axes, f"set_{name}scale")("symlog", linthresh=LINEAR_NATS)
        getattr(axes, f"set_{name}lim")(-reach if falls else -0.3 * LINEAR_NATS, reach)
        axis = getattr(axes, f"{name}axis")
        axis.set_minor_locator(_no_ticks())
        axis.set_ticks(ticks)
        axis.set_major_formatter(lambda value, _: _nats(value))
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.set_xlabel("predicted rise, nats per token")
    axes.tick_params(length=0)


def _no_ticks() -> object:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _nats(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}".replace("-", "\u2212")

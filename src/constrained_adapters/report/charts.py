"""The report's figures, small multiples 340 units wide, so that they are readable on a phone."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrained_adapters.report.numbers import decimal
from constrained_adapters.report.svg import MUTED, PAPER, drawing_style, inline_svg, series_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 340, 210
MARKERS = "osD^vPXp"
DASHES: list[tuple[int, tuple[float, ...]]] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
COLUMN_UNITS = 7.0
"""About the width of one character at the size of the labels."""
MAX_POINTS = 480
"""Points of one chart after binning, all lines together: more than one for each unit of its width."""


@dataclass(frozen=True)
class Line:
    """One series; ``index`` picks its colour, marker and dash; ``marker`` overrides the second."""

    label: str
    index: int
    xs: list[float]
    ys: list[float]
    marker: str = ""


@dataclass(frozen=True)
class Chart:
    """What a chart says besides its lines.

    Args:
        figure_id: Unique on the page; a valid HTML id.
        title: What is shown.
        unit: What the vertical axis counts, and which way is better.
        write: How a value of the vertical axis is written.
        zero_line: Draw a line at 0.
        limits: Fixed vertical limits.
        height: In CSS pixels, as ``width``.
    """

    figure_id: str
    title: str
    unit: str
    write: Callable[[float | None], str] = decimal
    zero_line: bool = False
    limits: tuple[float, float] | None = None
    height: int = HEIGHT
    width: int = WIDTH


@dataclass(frozen=True)
class Drawing:
    """A finished figure for the template."""

    title: str
    unit: str
    svg: str


def sequence_chart(
    chart: Chart, lines: Sequence[Line], domains: Sequence[str], *, base: bool
) -> Drawing | None:
    """Draw values over the sequence: x = 0 is the base, x = i the model after domain i.

    Args:
        chart: Title, unit and axes.
        lines: Series over x; empty ones are left out.
        domains: Names in the order of training, for the ticks.
        base: Whether the axis starts at the base or at the first domain.
    """
    shown = [line for line in lines if line.xs]
    if not shown:
        return None
    with drawing_style(chart.figure_id):
        figure, axes = new_axes(chart)
        for line in shown:
            axes.plot(
                line.xs,
                line.ys,
                color=series_colour(line.index),
                linewidth=2,
                linestyle=_dash(line.index),
                marker=line.marker or MARKERS[line.index % len(MARKERS)],
                markersize=7,
                markevery=1 if len(shown) <= len(MARKERS) else max(1, len(line.xs) - 1),
                markeredgecolor=PAPER,
                markeredgewidth=1.2,
                clip_on=False,
                zorder=3,
            )
        last_tick = _sequence_ticks(axes, domains, base)
        _value_axis(axes, chart)
        set_margins(figure, axes, last_tick)
        described = "; ".join(f"{line.label}: {', '.join(map(chart.write, line.ys))}" for line in shown)
        start = "Base, then after each domain" if base else "After each domain"
        return finish(figure, chart, f"{start} ({', '.join(domains)}). {described}.")


def timeline_chart(chart: Chart, lines: Sequence[Line], ends: Sequence[float]) -> Drawing | None:
    """Draw values over all optimizer steps of the sequence, one colour per domain.

    Args:
        chart: Title, unit and axes.
        lines: One series per domain, x counted from the start of the run.
        ends: Where each domain ended, for the dividing lines.
    """
    shown = [line for line in lines if line.xs]
    if not shown:
        return None
    with drawing_style(chart.figure_id):
        figure, axes = new_axes(chart)
        for line in shown:
            xs, ys = binned(line.xs, line.ys, max(16, MAX_POINTS // len(shown)))
            colour = series_colour(line.index)
            if len(ys) > 12:
                axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.4, zorder=2)
                ys = smoothed(ys)
            marker = "" if len(xs) > 1 else MARKERS[line.index % len(MARKERS)]
            axes.plot(xs, ys, color=colour, lw=2, marker=marker, zorder=3)
        for end in ends[:-1]:
            axes.axvline(end, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        axes.set_xlim(0, max(ends))
        axes.set_xlabel("optimizer steps, whole sequence")
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.grid(visible=False, axis="x")
        _value_axis(axes, chart)
        set_margins(figure, axes)
        described = "; ".join(
            f"{line.label}: first {chart.write(line.ys[0])}, last {chart.write(line.ys[-1])}"
            for line in shown
        )
        return finish(figure, chart, f"Over {decimal(max(ends), 0)} steps. {described}.")


def binned(xs: Sequence[float], ys: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """Average neighbours so that at most ``limit`` points are left; values not finite are dropped."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=False) if math.isfinite(y)]
    width = max(1, math.ceil(len(pairs) / limit))
    groups = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    return (
        [math.fsum(x for x, _ in group) / len(group) for group in groups],
        [math.fsum(y for _, y in group) / len(group) for group in groups],
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the centred moving mean over about an eighth of the series; the window narrows at both ends."""
    reach = max(1, len(values) // 16)
    out = []
    for at in range(len(values)):
        span = min(reach, at, len(values) - 1 - at)
        window = values[at - span : at + span + 1]
        out.append(math.fsum(window) / len(window))
    return out


def new_axes(chart: Chart) -> tuple[Figure, Axes]:
    """Return an empty figure, one unit of it a CSS pixel, and its axes; call inside the drawing style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(chart.width / 72, chart.height / 72), dpi=72)
    return figure, figure.subplots()


def set_margins(figure: Figure, axes: Axes, last_tick: str = "") -> None:
    """Leave room for the tick labels, from their number of characters.

    The browser's fonts decide the true widths, so measuring with a font of ours would gain nothing
    and cost half of the time.

    Args:
        figure: Of one set of axes, whose limits and ticks are final.
        axes: Those axes.
        last_tick: The label at the right end, half of which stands outside.
    """
    width, height = (72 * inches for inches in figure.get_size_inches())
    low, high = sorted(axes.get_ylim())
    labels = [axes.yaxis.get_major_formatter()(tick, 0) for tick in axes.get_yticks() if low <= tick <= high]
    left = 12 + COLUMN_UNITS * max((text_columns(label) for label in labels), default=1)
    right = max(12.0, COLUMN_UNITS * text_columns(last_tick) / 2 - 10)
    figure.subplots_adjust(left=left / width, right=1 - right / width, bottom=42 / height, top=1 - 9 / height)


def finish(figure: Figure, chart: Chart, description: str) -> Drawing:
    """Return the figure as inline SVG with its title and description."""
    title = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
    return Drawing(chart.title, chart.unit, inline_svg(figure, chart.figure_id, title, description))


def _dash(index: int) -> tuple[int, tuple[float, ...]]:
    """A second mark beside the colour once the colours repeat."""
    return DASHES[(index // len(MARKERS)) % len(DASHES)]


def _value_axis(axes: Axes, chart: Chart) -> None:
    if chart.zero_line:
        axes.axhline(0, color=MUTED, linewidth=0.9, zorder=1)
    if chart.limits:
        axes.set_ylim(*chart.limits)
    else:
        low, high = axes.get_ylim()
        if high - low < 1e-9:
            axes.set_ylim(low - 0.5, high + 0.5)
    axes.tick_params(length=0)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: decimal(value, tick_digits(axes)))


def tick_digits(axes: Axes) -> int:
    """Return as many digits as neighbouring ticks of the vertical axis need to differ."""
    ticks = axes.get_yticks()
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    return next((digits for digits in range(8) if abs(step - round(step, digits)) < 1e-3 * step), 8)


def _sequence_ticks(axes: Axes, domains: Sequence[str], base: bool) -> str:
    """Name the domains where there is room, else number them; return the last label."""
    num = len(domains)
    fits = sum(text_columns(name) + 2 for name in domains) <= 44
    stride = 1 if fits else max(1, math.ceil(num / 10))
    at = [0] * base + list(range(stride if base else 1, num + 1, stride))
    names = [domains[i - 1] if fits else str(i) for i in at if i]
    axes.set_xticks(at, (["base"] if base else []) + names)
    axes.set_xlim(-0.15 if base else 0.85, num + 0.15)
    axes.set_xlabel("after learning" if fits else "after learning domain number")
    axes.grid(visible=False, axis="x")
    return names[-1]


def text_columns(text: str) -> int:
    """Return the columns that a text takes: two for a wide East Asian character."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

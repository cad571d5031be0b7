"""Retention against plasticity: one marker per method, its name beside it, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from constrained_adapters.report.charts import (
    COLUMN_UNITS,
    MARKERS,
    WIDTH,
    Chart,
    Drawing,
    finish,
    new_axes,
    set_margins,
    text_columns,
    tick_digits,
)
from constrained_adapters.report.numbers import decimal
from constrained_adapters.report.svg import INK, MUTED, PAPER, drawing_style, series_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One method in the plane of plasticity (x) and drift (y), both in percent."""

    label: str
    index: int
    x: float
    y: float
    ranked: bool


def pareto_chart(chart: Chart, points: Sequence[Point], x_title: str) -> Drawing | None:
    """Draw drift against plasticity, up and right is better, with the front of ranked methods."""
    if len(points) < 2:
        return None
    with drawing_style(chart.figure_id):
        figure, axes = new_axes(chart)
        front = pareto_front([point for point in points if point.ranked])
        axes.plot([p.x for p in front], [p.y for p in front], color=MUTED, lw=1.2, ls=(0, (4, 3)), zorder=2)
        for point in points:
            colour = series_colour(point.index)
            axes.plot(
                [point.x],
                [point.y],
                linestyle="",
                marker=MARKERS[point.index % len(MARKERS)],
                markersize=10,
                color=colour if point.ranked else PAPER,
                markeredgecolor=PAPER if point.ranked else colour,
                markeredgewidth=1.6,
                clip_on=False,
                zorder=4,
            )
        axes.margins(x=0.24 * WIDTH / chart.width, y=0.18)
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        _stretch_small_drifts(axes, points)
        axes.invert_yaxis()
        axes.get_xlim()  # settles the limits, on which the places of the labels depend
        axes.set_xlabel(f"{x_title} (%)  →")
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=5)
        set_margins(figure, axes)
        _place_labels(axes, points)
        described = "; ".join(
            f"{p.label}: learned {decimal(p.x, 1)} %, drift {decimal(p.y, 1, sign=True)} %" for p in points
        )
        on_front = ", ".join(p.label for p in front)
        return finish(figure, chart, f"{described}. On the front: {on_front or 'none'}.")


def _stretch_small_drifts(axes: Axes, points: Sequence[Point]) -> None:
    """Give drifts of a few percent room beside one of hundreds: linear around 0, logarithmic beyond."""
    drifts = [point.y for point in points]
    if max(drifts) - min(drifts) <= _WIDE:
        axes.locator_params(axis="y", nbins=6)
        axes.yaxis.set_major_formatter(lambda value, _: decimal(value, tick_digits(axes)))
        return
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    reach = max(abs(drift) for drift in drifts)
    marks = [mark for mark in _MARKS if mark <= 1.5 * reach]
    axes.set_ylim(min(-2.0, 1.5 * min(drifts)), max(2.0, 1.5 * max(drifts)))
    axes.set_yticks([-mark for mark in marks if -mark >= 1.5 * min(drifts)] + [0.0, *marks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: decimal(value, 0))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats on both axes (more x, less y), by rising x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, p.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    return front[::-1]


_WIDE = 30.0
"""Percent between the least and the largest drift from which the axis is stretched."""
_LINEAR = 5.0
_MARKS = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]

_PLACES: list[tuple[Literal["left", "center", "right"], float, float]] = [
    ("left", 11, -4),
    ("right", -11, -4),
    ("center", 0, 10),
    ("center", 0, -20),
    ("left", 9, 6),
    ("left", 9, -16),
    ("right", -9, 6),
    ("right", -9, -16),
]
"""Where a name may stand beside its marker, the best place first: alignment and offset."""


def _place_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Write each method's name at the side of its marker where it covers least of the others."""
    centres = [tuple(axes.transData.transform((point.x, point.y))) for point in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    inner = axes.get_window_extent()
    for point, (x, y) in zip(points, centres, strict=True):
        name = point.label if text_columns(point.label) <= 20 else point.label[:18] + "…"
        wide, high = COLUMN_UNITS * text_columns(name), 13.0
        scored = []
        for rank, (align, dx, dy) in enumerate(_PLACES):
            left = x + dx - {"left": 0.0, "right": wide, "center": wide / 2}[align]
            box = (left, y + dy - 2, left + wide, y + dy - 2 + high)
            outside = max(0.0, inner.x0 - box[0]) + max(0.0, box[2] - inner.x1)
            scored.append(
                (sum(_overlap(box, other) for other in taken) + 20 * outside, rank, align, dx, dy, box)
            )
        _, _, align, dx, dy, box = min(scored)
        taken.append(box)
        axes.annotate(
            name,
            (point.x, point.y),
            (dx, dy),
            textcoords="offset points",
            ha=align,
            color=INK,
            annotation_clip=False,
            zorder=5,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.report.charts import (
    Chart,
    Line,
    binned,
    sequence_chart,
    smoothed,
    text_columns,
)
from constrained_adapters.report.pareto import Point, pareto_chart, pareto_front

finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite), max_size=12))
def test_the_front_is_what_no_other_point_beats(places):
    points = [Point(str(i), i, x, y, ranked=True) for i, (x, y) in enumerate(places)]
    front = pareto_front(points)
    for point in points:
        beaten = any(
            other.x >= point.x and other.y <= point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )
        if point in front:
            assert not beaten
        elif not beaten:  # left out only because an equal point stands for it
            assert any((other.x, other.y) == (point.x, point.y) for other in front)
    assert all(a.x <= b.x for a, b in itertools.pairwise(front))


@given(st.lists(st.one_of(finite, st.just(math.nan)), max_size=700))
def test_binning_keeps_the_span_and_drops_what_is_not_finite(values):
    xs, ys = binned(list(range(len(values))), values, 160)
    present = [value for value in values if math.isfinite(value)]
    assert len(xs) == len(ys) <= 160
    assert all(min(present) - 1e-6 <= y <= max(present) + 1e-6 for y in ys)
    assert bool(ys) == bool(present)


def test_smoothing_keeps_constants_lines_and_ends():
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    line = [0.5 * x for x in range(50)]
    assert smoothed(line) == pytest.approx(line)


def test_wide_characters_count_twice():
    assert text_columns("law") == 3 and text_columns("数学") == 4


def test_many_domains_are_numbered_instead_of_named():
    domains = [f"a rather long name {i}" for i in range(20)]
    lines = [Line(domains[0], 0, [1.0, 20.0], [0.0, 5.0])]
    drawing = sequence_chart(Chart("c", "Drift", "%"), lines, domains, base=True)
    assert "after learning domain number" in drawing.svg
    assert ">20</text>" in drawing.svg and ">a rather long name 0</text>" not in drawing.svg


def test_no_values_no_figure():
    assert sequence_chart(Chart("c", "Drift", "%"), [Line("a", 0, [], [])], ["a"], base=True) is None


@pytest.mark.parametrize(
    ("drifts", "ticks"),
    [
        ((0.5, 4.0), ["0", "2", "4"]),
        ((0.5, 300.0), ["0", "5", "10", "20", "50", "100", "200"]),
        ((-40.0, -2.0), ["−50", "−5", "0"]),
    ],
)
def test_a_drift_of_a_few_percent_has_room_beside_one_of_hundreds(drifts, ticks):
    points = [Point(f"method {i}", i, 20.0 + i, drift, ranked=True) for i, drift in enumerate(drifts)]
    drawing = pareto_chart(Chart("p", "Retention", "%", height=380), points, "learned")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", drawing.svg)
    assert set(ticks) <= {*texts}

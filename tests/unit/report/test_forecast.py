"""The figure and the sentence of predicted against measured forgetting."""

from __future__ import annotations

import pytest

from constrained_adapters.evaluation.calibration import Pair
from constrained_adapters.report import render_report
from constrained_adapters.report.charts import Chart
from constrained_adapters.report.forecast import forecast_chart, forecast_sentence, forecasts
from constrained_adapters.results import RunResult

from .factory import DOMAINS, make_method, make_result

CHART = Chart("f", "Measured against predicted", "nats per token")


def test_forecasts_are_paired_from_the_matrices_of_old_records_too():
    method = make_method("crma")
    assert all(record.measured_increase_nats == {} for record in method.records)
    found = forecasts(method)
    assert [(pair.trained, pair.finished) for pair in found] == [
        ("medicine", "base"),
        ("数学", "base"),
        ("数学", "medicine"),
        ("Право", "base"),
        ("Право", "medicine"),
        ("Право", "数学"),
    ]
    loss = method.matrices["loss"]
    assert found[2].measured == pytest.approx(loss[2][0] - loss[1][0])
    assert found[0].measured == pytest.approx(method.general_nats[1] - method.general_nats[0])


def test_the_sentence_says_how_many_held():
    found = [Pair("b", "a", 0.1, 0.1), Pair("c", "a", 0.4, 0.1), Pair("c", "b", 0.01, -0.1)]
    assert forecast_sentence(found) == (
        "1 of 3 forecasts lie within a factor of 1.5 of what was measured; where both rise (2), the median "
        "of predicted over measured is 2.50; rank correlation +0.87."
    )
    assert forecast_sentence([Pair("b", "a", 0.1, None)]) == ""


def test_the_sentence_and_the_figure_say_what_the_items_leave_open():
    found = [Pair("b", "a", 0.1, 0.2, (-0.5, 0.9)), Pair("c", "a", 0.4, 0.1, (0.05, 0.15))]
    assert "; 1 of 2 within what the scored items leave open (the lines, 95 %);" in forecast_sentence(found)
    plain = [Pair(pair.trained, pair.finished, pair.predicted, pair.measured) for pair in found]
    assert "leave open" not in forecast_sentence(plain)
    drawn, undrawn = forecast_chart(CHART, found, ["a"]), forecast_chart(CHART, plain, ["a"])
    assert drawn is not None and undrawn is not None
    assert drawn.svg.count("<path") > undrawn.svg.count("<path")


@pytest.mark.parametrize("measured", [0.1, -0.1, 1e-6, 0.0, 40.0])
def test_any_size_and_sign_is_drawn_and_described(measured):
    drawing = forecast_chart(CHART, [Pair("b", "law", 0.002, measured), Pair("b", "base", 0.2, 0.3)], ["law"])
    assert drawing is not None and drawing.svg.startswith("<svg")
    assert "law while learning b: predicted 0.002, measured" in drawing.svg
    assert "base while learning b" in drawing.svg
    assert "e-05" not in drawing.svg.partition("</desc>")[2]


def test_nothing_measured_no_figure():
    assert forecast_chart(CHART, [Pair("b", "a", 0.1, None)], ["a"]) is None
    assert forecast_chart(CHART, [], ["a"]) is None


def test_the_page_has_the_figure_only_where_something_was_predicted():
    html = render_report(make_result(["crma", "lora"], DOMAINS))
    assert html.count("Measured against predicted") >= 1
    assert 'id="method-1-forecast-title"' in html and 'id="method-2-forecast-title"' not in html
    assert "forecasts lie within a factor of 1.5" in html


def test_results_of_before_the_field_are_still_read():
    result = make_result(["crma"], DOMAINS).model_dump()
    for record in result["methods"][0]["records"]:
        del record["measured_increase_nats"]
    old = RunResult.model_validate(result)
    assert old.methods[0].records[0].measured_increase_nats == {}
    assert "forecasts lie within" in render_report(old)

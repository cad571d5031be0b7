"""Importance by layer, diversity, guards, intervals, paired differences and several runs on the page."""

import math

import pytest

from constrained_adapters.errors import UsageError
from constrained_adapters.report import render_report
from constrained_adapters.report.comparison import compare
from constrained_adapters.report.layers import by_layer, layer_and_kind
from constrained_adapters.report.pairs import paired_rows
from constrained_adapters.report.sections import section
from constrained_adapters.report.several import combined
from constrained_adapters.report.watch import guard_events
from constrained_adapters.results import MethodResult, load_results

from .factory import make_method, make_result


@pytest.fixture(scope="module")
def crma() -> MethodResult:
    return make_method("crma")


def test_importance_and_change_are_drawn_by_kind_of_module_with_one_line_a_domain(crma):
    found = by_layer("method-1", crma)
    assert [drawing.title for drawing in found.drawings] == [
        f"{what}, {kind}" for what in ("Importance", "Change of weights") for kind in ("q_proj", "v_proj")
    ]
    assert "Право: " in found.drawings[0].svg and "most in layer" in found.drawings[0].svg
    assert found.kinds == ["q_proj", "v_proj"]
    assert [row[0] for row in found.log] == crma.domains
    shares = [float(text.split("\u00a0")[0]) for text in found.log[0][1:3]]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def test_the_log_names_the_layers_that_matter_most(crma):
    record = crma.records[0].model_copy(
        update={"importance": {f"h.{layer}.attn.c_attn": float(layer == 7) + 0.1 for layer in range(9)}}
    )
    found = by_layer("m", crma.model_copy(update={"records": [record]}))
    assert found.kinds == ["c_attn"] and found.log[0][-1].startswith("7, ")


def test_modules_of_one_last_name_keep_their_whole_name(crma):
    importance = {"h.0.attn.c_proj": 1.0, "h.0.mlp.c_proj": 3.0}
    record = crma.records[0].model_copy(update={"importance": importance, "weight_change": {}})
    found = by_layer("m", crma.model_copy(update={"records": [record]}))
    assert found.kinds == ["attn.c_proj", "mlp.c_proj"]
    assert found.log[0][1:3] == ["25.0\u00a0%", "75.0\u00a0%"]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_importance_that_no_logarithm_has_is_left_out(crma, value):
    record = crma.records[0].model_copy(update={"importance": {"h.0.q": value}, "weight_change": {}})
    assert by_layer("m", crma.model_copy(update={"records": [record]})).drawings == []


def test_a_module_without_a_layer_has_no_place():
    assert layer_and_kind("lm_head") is None
    assert layer_and_kind("transformer.h.3.attn.c_attn") == (3, "attn.c_attn")


def test_diversity_and_guards_have_their_own_figures_and_are_not_among_the_other_curves(crma):
    part = section(0, crma, [crma])
    assert [drawing.title for drawing in part.diversity] == ["Unique 3-grams", "Self-BLEU"]
    assert [drawing.title for drawing in part.guard] == ["Old domains, probe"]
    others = {drawing.title for drawing in part.more_curves}
    assert "Learning rate" in others and not others & {"Self bleu", "Probe old nats"}


def test_each_event_of_a_guard_is_a_row(crma):
    rows = guard_events(crma).rows
    assert rows[0] == [
        "数学",
        "15",
        "forgetting",
        "roll back",
        "medicine is 12.1 % worse",
        "drift percent 12.1",
    ]
    assert len(rows) == 2


def test_what_the_guard_took_is_said_where_it_ran(crma):
    assert section(0, crma, [crma]).guard_note == ""
    records = [each.model_copy(update={"guard": {"time_ratio": 0.1}}) for each in crma.records[:2]]
    part = section(0, crma.model_copy(update={"records": records}), [crma])
    assert part.guard_note.endswith("took 10\u00a0% (medicine), 10\u00a0% (数学) of the training's time.")


def test_shares_are_drawn_from_nothing_to_all(crma):
    figures = {drawing.title: drawing.svg for drawing in section(0, crma, [crma]).diversity}
    assert all(
        ">1.00<" in figures[name] and ">0.00<" in figures[name] for name in ("Unique 3-grams", "Self-BLEU")
    )


def test_an_interval_stands_beside_its_value(crma):
    comparison = compare([crma])
    cells = dict(zip([column.title for column in comparison.columns], comparison.rows[1].cells, strict=True))
    assert cells["Final accuracy"].interval == "40.0 … 60.0"
    assert cells["Drift"].interval == "−1.5 … +4.0"
    assert cells["BWT"].interval == "−10.0 … 0.0"
    assert cells["Time"].interval == ""


def test_methods_are_compared_on_the_same_items(crma):
    rows = paired_rows([crma, make_method("lora")])
    assert {row[0] for row in rows} == {"lora"} and len(rows) == 3
    exact = next(row for row in rows if row[1].startswith("Exact"))
    assert exact[2].startswith("+") and exact[-1] == "120"


def test_a_record_without_items_is_not_compared(crma):
    assert paired_rows([crma, make_method("lora").model_copy(update={"items": {}})]) == []


def test_plasticity_and_intransigence_have_columns_where_the_run_has_them(crma):
    summary = {**crma.summary, "plasticity_percent": 96.4, "intransigence": 0.021}
    with_them = compare([crma.model_copy(update={"summary": summary})])
    texts = dict(zip([c.title for c in with_them.columns], with_them.rows[1].cells, strict=True))
    assert texts["Plasticity"].text == "96\u00a0%" and texts["Intransigence"].text == "+2.1"
    assert "Plasticity" not in [column.title for column in compare([crma]).columns]


def test_several_runs_make_one_page_with_each_method_under_its_run():
    first, second = make_result(["crma", "lora"]), make_result(["crma"], settings={"seed": 1})
    result = combined([("march", first), ("may", second)])
    assert [method.name for method in result.methods] == ["crma (march)", "lora (march)", "crma (may)"]
    assert set(result.settings) == {"march", "may"} and result.base == first.base
    assert {entry["run"] for entry in result.ledger} == {"march", "may"}
    html = render_report(result)
    assert "crma (may)" in html and 'id="pareto-title"' in html


def test_runs_of_one_name_are_numbered():
    result = combined([("run", make_result(["crma"])), ("run", make_result(["crma"]))])
    assert [method.name for method in result.methods] == ["crma (run 1)", "crma (run 2)"]


def test_runs_of_other_domains_are_refused():
    with pytest.raises(UsageError, match="other domains"):
        combined([("a", make_result(["crma"])), ("b", make_result(["crma"], ["medicine"]))])


def test_a_record_older_than_these_fields_still_makes_a_page(tmp_path):
    result = make_result()
    content = result.model_dump(exclude={"diagnosis"})
    for method in content["methods"]:
        for key in ("items", "intervals"):
            del method[key]
        for record in method["records"]:
            for key in ("importance", "weight_change", "events"):
                del record[key]
    file = tmp_path / "results.json"
    file.write_text(type(result).model_validate(content).model_dump_json(exclude_defaults=True), "utf-8")
    html = render_report(load_results(file))
    assert "Importance" not in html and "Before training" not in html

"""Tables and the figure: the numbers of the cells, written as a reader needs them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from constrained_adapters.benchmark.plan import read_plan
from constrained_adapters.benchmark.run import Options, run_benchmark
from constrained_adapters.benchmark.store import Store
from constrained_adapters.benchmark.tables import table_rows, write_tables
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.training.observer import SilentObserver


@pytest.fixture
def tables(write_plan, training):
    """Run a plan; return the Markdown's lines and the JSON's rows by method."""

    def make(**changes):
        plan = read_plan(write_plan(**changes))
        run_benchmark(plan, Options(), SilentObserver())
        folder = Store(plan.home).tables
        content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
        return lines, {row["method"]: row for row in content["rows"]}, folder

    return make


METHODS = ["base", "joint", {"recipe": "lora", "settings": {"learning_rate": 0.01}}, "crma"]


def test_every_column_has_the_value_that_the_cells_give(tables):
    _, rows, _ = tables(methods=METHODS)
    crma = {key: value and value["mean"] for key, value in rows["crma"]["values"].items()}
    # Loss 1.0 when learned, + 0.1 a later domain; with seed 1, 0.1 more from the start.
    assert crma["learned"] == pytest.approx(100 * ((1 - 1.0 / 4) + (1 - 1.1 / 4)) / 2)
    assert crma["drift_percent"] == pytest.approx(100 * (0.15 / 1.0 + 0.15 / 1.1) / 2)
    assert crma["backward_transfer"] == pytest.approx(-100 * 0.15 / 4)
    assert crma["forgetting"] == pytest.approx(100 * 0.15 / 4)
    assert crma["learned_of_lora"] == pytest.approx(100.0)
    assert crma["step_of_lora"] == pytest.approx(1.1)
    assert crma["general_change_percent"] == pytest.approx(100 * (2.718281828**0.01 - 1), rel=1e-6)
    assert (crma["train_minutes"], crma["peak_memory_mb"], crma["kept_kb"]) == (3.0, 3.0, 2.0)
    assert crma["choice_accuracy"] is None
    assert rows["crma"]["num_cells"] == 4
    assert len(rows["crma"]["values"]["drift_percent"]["cells"]) == 4
    low, high = (rows["crma"]["values"]["drift_percent"][end] for end in ("low", "high"))
    assert 100 * 0.15 / 1.1 <= low < crma["drift_percent"] < high <= 15.0 + 1e-9


def test_the_table_marks_references_and_leaves_out_what_nobody_has(tables):
    lines, rows, _ = tables(methods=METHODS, seeds=[0])
    header = next(line for line in lines if line.startswith("| Method"))
    assert "Choice accuracy" not in header and "Drift %" in header
    body = [line.split(" | ") for line in lines if re.match(r"\| (\*?)(base|joint|lora|crma)", line)]
    assert [row[0] for row in body] == [
        "| *base* (reference)",
        "| *joint* (reference)",
        "| lora",
        "| crma",
    ]
    columns = header.split(" | ")
    drift = body[3][columns.index("Drift %")]
    assert drift == "+15.0 (+15.0…+15.0)"  # two cells: their range
    assert [row[columns.index("Old data kept")] for row in body] == ["no", "yes", "no", "no"]
    assert [row["reference"] for row in rows.values()] == [True, True, False, False]


def test_a_table_of_one_cell_has_no_spread_and_says_so(tables):
    lines, _, _ = tables(methods=METHODS, seeds=[0], orders=[["law", "数学", "Право"]])
    row = next(line for line in lines if line.startswith("| crma"))
    assert "…" not in row and "+15.0" in row


def test_rows_with_different_numbers_of_cells_are_told(plan, training):
    run_benchmark(plan, Options(), SilentObserver())
    store = Store(plan.home)
    (store.cells / "test/crma/order-1-seed-1.json").unlink()
    table = write_tables(plan, store)
    assert "rows with different numbers of cells do not compare" in table.read_text(encoding="utf-8")


def test_without_lora_nothing_is_put_against_it(tables):
    lines, rows, _ = tables(methods=["crma"])
    assert rows["crma"]["values"]["learned_of_lora"] is None
    assert not any("LoRA's" in line for line in lines if line.startswith("| "))


def test_without_a_cell_there_is_no_table(plan):
    assert write_tables(plan, Store(plan.home)) is None


def test_cells_of_two_bases_are_no_table(plan, training):
    run_benchmark(plan, Options(), SilentObserver())
    store = Store(plan.home)
    file = store.cells / "test/crma/order-1-seed-1.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"f1"', '"f2"'), encoding="utf-8")
    with pytest.raises(WorkspaceError, match="the cells are of different bases") as caught:
        write_tables(plan, store)
    assert "f2 (crma, order 1, seed 1)" in caught.value.got


def test_rows_keep_the_order_of_the_plan(plan, training):
    run_benchmark(plan, Options(), SilentObserver())
    assert table_rows([]) == []
    content = json.loads((Store(plan.home).tables / "table.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in content["rows"]] == ["lora", "crma"]
    assert content["rows"][0]["setting"] == {"learning_rate": 0.01}


def test_the_figure_stands_alone(tables):
    lines, _, folder = tables(methods=METHODS)
    assert "![Retention against plasticity](pareto.svg)" in lines
    text = (folder / "pareto.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    defined = set(re.findall(r"(--[\w-]+):", text))
    assert used and used <= defined
    words = " ".join(root.itertext())
    assert "crma" in words and "joint" in words
    assert "base:" not in words  # it learns nothing: no point in this plane


def test_one_method_has_no_figure(tables):
    lines, _, folder = tables(methods=["crma"])
    assert not (folder / "pareto.svg").exists()
    assert not any("pareto" in line for line in lines)

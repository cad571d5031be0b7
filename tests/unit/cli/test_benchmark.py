"""``crma benchmark``: parses, calls, prints."""

from __future__ import annotations

import pytest

from constrained_adapters.benchmark import run as run_module
from constrained_adapters.benchmark.cells import Restriction
from constrained_adapters.benchmark.run import Options, Outcome

PLAN = """
domains: [{name: law, data: law.jsonl}]
orders: [[law]]
seeds: [0, 1]
methods: [{recipe: lora, learning_rates: [1e-3, 2e-3]}]
"""


@pytest.fixture
def plan_file(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN, encoding="utf-8")
    return file


@pytest.fixture
def called(monkeypatch):
    calls = []

    def run_benchmark(plan, options, observer):
        calls.append((plan, options))
        return run_benchmark.outcome

    run_benchmark.outcome = Outcome(3, 4, {}, [], False, None)
    monkeypatch.setattr(run_module, "run_benchmark", run_benchmark)
    run_benchmark.calls = calls
    return run_benchmark


def test_options_reach_the_benchmark(crma, called, plan_file, tmp_path):
    done = crma(
        "benchmark", plan_file, "--phase", "test", "--methods", "lora", "--orders", "1", "--seeds", "0, 1",
        "--time-limit", "2.5", "--retry", "--keep-work",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan, options = called.calls[0]
    assert plan.home == tmp_path
    assert options == Options("test", Restriction(("lora",), (1,), (0, 1)), 2.5, True, True)
    assert done.stdout == "3 of 4 cells are done.\n"


def test_what_is_missing_is_said(crma, called, plan_file, tmp_path):
    table = tmp_path / "tables" / "table.md"
    called.outcome = Outcome(3, 6, {"test/lora/order-1-seed-0": "no memory"}, ["crma"], True, table)
    done = crma("benchmark", plan_file)
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"Table: {table}",
        "3 of 6 cells are done.",
        "Their sweep is not finished: crma",
        "The time limit is over: the same command goes on.",
    ]
    assert "Failed: test/lora/order-1-seed-0: no memory" in done.stderr


def test_a_dry_run_prints_the_cells_and_their_number(crma, called, plan_file):
    done = crma("benchmark", plan_file, "--dry-run")
    assert done.exit_code == 0, done.output
    assert called.calls == []
    assert done.stdout.splitlines()[0] == "to do  sweep: lora, law, seed 0, learning_rate=0.001"
    assert done.stdout.splitlines()[-1] == "4 cells: 4 to do"


def test_bad_input_is_four_lines_and_code_2(crma, plan_file):
    done = crma("benchmark", plan_file, "--methods", "lroa", "--dry-run")
    assert done.exit_code == 2
    assert "UnknownNameError: no method named 'lroa'" in done.stderr
    assert "Try:      lora" in done.stderr
    assert crma("benchmark", plan_file, "--seeds", "zero").exit_code == 2

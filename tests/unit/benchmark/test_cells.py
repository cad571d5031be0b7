"""Cells: which, in which order, and which of them a restriction takes."""

from __future__ import annotations

import pytest

from constrained_adapters.benchmark.cells import Restriction, describe, sweep_cells, table_cells
from constrained_adapters.errors import UnknownNameError

from .conftest import DOMAINS

CHOSEN = {"lora": {"learning_rate": 0.01}, "crma": {}}


def test_a_sweep_runs_on_validation_on_the_first_domains_of_the_first_order(plan):
    cells = sweep_cells(plan)
    assert [cell.key for cell in cells] == ["sweep/lora/learning_rate=0.001", "sweep/lora/learning_rate=0.01"]
    for cell in cells:
        assert (cell.config.evaluation.split, cell.config.seed) == ("validation", 0)
        assert [domain.name for domain in cell.config.domains] == DOMAINS[:2]
        assert cell.config.methods[0].learning_rate == cell.setting["learning_rate"]


def test_all_methods_come_on_one_order_and_seed_before_the_next(plan):
    cells = table_cells(plan, CHOSEN)
    assert [cell.key.removeprefix("test/") for cell in cells] == [
        f"{method}/order-{order}-seed-{seed}"
        for seed in (0, 1)
        for order in (1, 2)
        for method in ("lora", "crma")
    ]
    second = cells[2].config
    assert [domain.name for domain in second.domains] == DOMAINS[::-1]
    assert (second.evaluation.split, second.methods[0].learning_rate) == ("test", 0.01)
    assert describe(cells[2]) == "test: lora, Право → 数学 → law, seed 0, learning_rate=0.01"


def test_methods_without_a_choice_are_left_out(plan):
    assert {cell.method for cell in table_cells(plan, {"crma": {}})} == {"crma"}


def test_cells_share_no_configuration_that_one_of_them_could_change(plan):
    first, second = table_cells(plan, CHOSEN)[:2]
    first.config.domains[0].data = "/absolute"
    assert second.config.domains[0].data == plan.domains[0].data == "law.jsonl"


def test_a_restriction_takes_its_part_of_the_test_and_whole_sweeps(plan):
    only = Restriction(methods=("lora",), orders=(2,), seeds=(1,))
    only.check(plan)
    assert [cell.key for cell in table_cells(plan, CHOSEN) if only.takes(cell)] == [
        "test/lora/order-2-seed-1"
    ]
    assert all(only.takes(cell) for cell in sweep_cells(plan))


@pytest.mark.parametrize(
    ("restriction", "message"),
    [
        (Restriction(methods=("loar",)), r"no method named 'loar'(?s:.*)--methods(?s:.*)Try: +lora"),
        (Restriction(orders=(3,)), r"no order named '3'(?s:.*)Expected: 1, 2"),
        (Restriction(seeds=(7,)), r"no seed named '7'(?s:.*)Expected: 0, 1"),
    ],
)
def test_a_restriction_to_what_the_plan_has_not_is_refused(plan, restriction, message):
    with pytest.raises(UnknownNameError, match=message):
        restriction.check(plan)

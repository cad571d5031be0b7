"""Plans are read strictly: each mistake is told with its place and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from constrained_adapters.benchmark.plan import read_plan
from constrained_adapters.errors import ConfigError, UnknownNameError

from .conftest import DOMAINS


def test_a_plan_keeps_paths_as_they_are_written_and_its_output_beside_it(write_plan, tmp_path):
    plan = read_plan(write_plan())
    assert (plan.home, plan.folder) == (tmp_path, tmp_path)
    assert plan.domains[0].data == "law.jsonl"
    assert read_plan(write_plan(output="elsewhere")).home == tmp_path / "elsewhere"


def test_every_combination_of_swept_values_is_a_setting(write_plan):
    method = {"recipe": "crma", "learning_rates": [0.1, 0.2], "sweep": {"constraint_strength": [0.9, 0.95]}}
    plan = read_plan(write_plan(methods=[method, "lora"]))
    assert plan.methods[0].swept_settings() == [
        {"learning_rate": 0.1, "constraint_strength": 0.9},
        {"learning_rate": 0.1, "constraint_strength": 0.95},
        {"learning_rate": 0.2, "constraint_strength": 0.9},
        {"learning_rate": 0.2, "constraint_strength": 0.95},
    ]
    assert plan.methods[1].swept_settings() == [{}]


@pytest.mark.parametrize(
    ("changes", "what", "got", "hint"),
    [
        ({"seed": [0]}, "no setting named 'seed'", r"seed \(", "seeds"),
        ({"seeds": []}, "the setting 'seeds' is not valid", r"seeds = \[\]", None),
        ({"orders": []}, "the setting 'orders' is not valid", r"orders = \[\]", None),
        ({"methods": []}, "the setting 'methods' is not valid", r"methods = \[\]", None),
        ({"seeds": [0, 0]}, "the same seed is there twice", r"0 \(", None),
        ({"orders": [DOMAINS, DOMAINS]}, "the same order is there twice", "law → 数学", None),
        ({"orders": [["law", "数学"]]}, "an order lacks Право", r"law → 数学 \(", None),
        (
            {"orders": [[*DOMAINS, "law"]]},
            "an order has a domain twice",
            r"law → 数学 → Право → law \(",
            None,
        ),
        ({"orders": [["lav", "数学", "Право"]]}, "no domain named 'lav'", "orders, ", "law"),
        ({"methods": ["lorra"]}, "no recipe named 'lorra'", "'lorra'", "lora"),
        ({"methods": ["lora", "lora"]}, "the same method is there twice", r"lora \(", None),
        (
            {"methods": [{"recipe": "lora", "learning_rates": []}]},
            "the setting 'methods[0].learning_rates' is not valid",
            "learning_rates",
            None,
        ),
        (
            {"methods": [{"recipe": "lora", "sweep": {"learning_rate": []}}]},
            "the setting 'methods[0].sweep' is not valid",
            "sweep",
            None,
        ),
        (
            {"methods": [{"recipe": "lora", "learning_rates": [-1.0]}]},
            "the setting 'learning_rate' is not valid",
            r"learning_rate = -1.0 \(",
            None,
        ),
        (
            {"methods": [{"recipe": "crma", "settings": {"constraint_strenght": 0.9}}]},
            "no setting named 'constraint_strenght'",
            r"constraint_strenght \(",
            "constraint_strength",
        ),
        (
            {"methods": [{"recipe": "lora", "settings": {"constraint_strength": 0.9}}]},
            "the setting 'constraint_strength' has no effect on the recipe 'lora'",
            "methods: lora",
            "leave it out",
        ),
        (
            {"methods": [{"recipe": "lora", "settings": {"learning_rate": 0.1}, "learning_rates": [0.1]}]},
            "a method has the setting 'learning_rate' twice",
            "methods: lora",
            None,
        ),
        (
            {"methods": [{"recipe": "lora", "learning_rates": [0.1, 0.1]}]},
            "a swept value is there twice",
            "methods: lora",
            None,
        ),
        (
            {"methods": [{"recipe": "lora", "settings": {"name": "other"}}]},
            "'name' is no setting of a method",
            "methods: lora",
            "one level up",
        ),
        ({"sweep": {"domains": 4}}, "the sweep has more domains than the plan", "sweep.domains = 4", None),
        (
            {"evaluation": {"split": "validation"}},
            "the split is not a plan's to choose",
            "evaluation.split = 'validation'",
            "leave it out",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(write_plan, changes, what, got, hint):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        read_plan(write_plan(**changes))
    error = caught.value
    assert error.what.startswith(what)

    assert re.search(got, error.got), error.got
    if hint:
        assert hint in (error.hint or "")
    if "no effect" not in what:
        assert re.search(r"plan\.yaml, line \d+", error.got), error.got


def test_a_plan_that_is_not_there_is_told_with_the_one_inside_a_folder(write_plan, tmp_path):
    write_plan()
    with pytest.raises(ConfigError, match="there is no such plan") as caught:
        read_plan(tmp_path)
    assert caught.value.hint == str(tmp_path / "plan.yaml")


@pytest.mark.parametrize("name", ["small", "full"])
def test_the_plans_of_this_project_can_be_read(name):
    plan = read_plan(Path(__file__).parents[3] / "benchmarks" / name / "plan.yaml")
    assert plan.home.name == name
    assert {"base", "joint", "separate", "lora", "full", "replay", "crma"} <= {m.recipe for m in plan.methods}

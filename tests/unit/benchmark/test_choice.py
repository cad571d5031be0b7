"""The rule of choice, and what is written down of it."""

from __future__ import annotations

import json

import pytest

from constrained_adapters.benchmark.choice import RULE, choose, chosen_settings
from constrained_adapters.benchmark.plan import read_plan
from constrained_adapters.benchmark.run import Options, run_benchmark
from constrained_adapters.benchmark.store import Store
from constrained_adapters.training.observer import SilentObserver

from .conftest import LOSSES


@pytest.fixture
def swept(plan, training):
    def sweep(plan=plan) -> dict:
        run_benchmark(plan, Options(phase="sweep"), SilentObserver())
        return json.loads(Store(plan.home).chosen_file.read_text(encoding="utf-8"))

    return sweep


def test_the_lowest_final_loss_wins_and_its_reasons_are_written(swept, plan):
    written = swept()
    assert (written["rule"], written["split"], written["seed"]) == (RULE, "validation", 0)
    assert written["domains"] == ["law", "数学"]
    assert list(written["methods"]) == ["lora"]
    lora = written["methods"]["lora"]
    assert lora["setting"] == {"learning_rate": 0.01}
    # After the second domain: the first at its loss plus one rise, the second as just learned.
    assert [c["final_loss_nats"] for c in lora["candidates"]] == [pytest.approx(2.0), pytest.approx(1.25)]
    assert chosen_settings(plan, Store(plan.home)) == {"lora": {"learning_rate": 0.01}, "crma": {}}


@pytest.mark.parametrize(("second", "winner"), [((1.5, 1.0), 0.001), ((1.5, 1.2), 0.001), ((1.5, 0.9), 0.01)])
def test_ties_fall_to_exact_match_and_then_to_the_first(swept, monkeypatch, second, winner):
    monkeypatch.setitem(LOSSES, ("lora", 0.01), second)
    assert swept()["methods"]["lora"]["setting"] == {"learning_rate": winner}


def test_exact_match_breaks_a_tie_of_losses(swept, plan, monkeypatch):
    from constrained_adapters.benchmark import choice

    monkeypatch.setattr(
        choice,
        "row_mean",
        lambda result, metric, row: 1.0 if metric == "loss" else result.settings["learning_rate"],
    )
    assert swept()["methods"]["lora"]["setting"] == {"learning_rate": 0.01}


def test_a_choice_is_not_made_before_its_sweep_is_finished(swept, plan):
    swept()
    store = Store(plan.home)
    (store.cells / "sweep/lora/learning_rate=0.001.json").unlink()
    store.chosen_file.unlink()
    choose(plan, store)
    assert chosen_settings(plan, store) == {"crma": {}}


def test_a_choice_among_other_values_is_not_used(swept, plan, write_plan):
    swept()
    other = read_plan(write_plan(methods=[{"recipe": "lora", "learning_rates": [0.01, 0.1]}, "crma"]))
    assert chosen_settings(other, Store(other.home)) == {"crma": {}}

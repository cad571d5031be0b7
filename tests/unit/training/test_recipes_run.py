"""What holds for every named method: it runs, goes on where it stopped, and says what it kept."""

from __future__ import annotations

import pytest

from constrained_adapters.recipes import RECIPES

from .conftest import DOMAINS, StopAt, StopError, numbers

TRAINED = [name for name, row in RECIPES.items() if row.trained != "nothing"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_runs_and_its_result_is_complete(tiny_run, recipe):
    result = tiny_run(recipe)
    method = result.methods[0]
    assert [record.name for record in method.records] == method.domains == DOMAINS
    for matrix in method.matrices.values():
        assert len(matrix) == 4 and all(cell is not None for row in matrix for cell in row)
    assert all(value is not None for value in method.general_nats)
    assert {"train_seconds", "step_seconds", "bytes_per_domain", "peak_memory_bytes"} <= set(method.summary)
    assert method.summary["keeps_old_data"] == float(RECIPES[recipe].keeps_old_data)
    assert len(method.samples) == 3
    moved = method.matrices["loss"][0] != method.matrices["loss"][3]
    assert moved == (recipe in TRAINED)
    assert [entry["domain"] for entry in result.ledger] == DOMAINS


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_ends_with_the_same_numbers(tiny_run, recipe):
    whole = tiny_run(recipe, output="whole")
    stops = [StopAt(row=1)]
    if recipe in TRAINED:
        last = "law" if recipe == "joint" else "Право"
        stops = [StopAt(step=("law", 3)), *stops, StopAt(step=(last, 3))]
    for stop in stops if recipe != "joint" else stops[:2]:
        with pytest.raises(StopError):
            tiny_run(recipe, output="stopped", observer=stop)
    stopped = tiny_run(recipe, output="stopped")
    assert numbers(stopped.methods[0].model_dump()) == numbers(whole.methods[0].model_dump())

"""What holds for every named method: it runs, goes on where it stopped, and says what it kept."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from constrained_adapters.config import BaseConfig, MethodConfig
from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.recipes import RECIPES
from constrained_adapters.rehearsal import ReplayBuffer
from constrained_adapters.results import Curve
from constrained_adapters.training.run import run_config

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


def matrices(result, number=0):
    return result.methods[number].matrices


def test_replay_without_old_rows_is_plain_lora_and_with_them_it_keeps_data(tiny_run):
    plain = tiny_run("lora", output="lora")
    none = tiny_run({"recipe": "replay", "replay_ratio": 0.0}, output="none")
    some = tiny_run({"recipe": "replay", "replay_ratio": 0.5, "replay_capacity": 7}, output="some")
    assert matrices(none) == matrices(plain)
    assert matrices(some)["loss"][1] == matrices(plain)["loss"][1]  # no domain is finished yet
    assert matrices(some)["loss"][2] != matrices(plain)["loss"][2]
    kept = tiny_run.folder / "some" / "replay" / "memory" / "replay_buffer.safetensors"
    buffer = ReplayBuffer.load(kept)
    assert [len(rows) for rows in buffer.rows.values()] == [3, 2, 2]
    difference = some.methods[0].summary["bytes_per_domain"] - plain.methods[0].summary["bytes_per_domain"]
    assert round(3 * difference) == kept.stat().st_size
    assert not list((tiny_run.folder / "lora").rglob("replay_buffer*"))


def test_references_are_what_they_say(tiny_run):
    result = tiny_run("base", "separate", "joint", "lora")
    base, separate, joint, lora = (method.matrices["loss"] for method in result.methods)
    assert base[0] == base[1] == base[3] == separate[0] == joint[0] == lora[0]
    for number in range(3):
        column = [separate[row][number] for row in range(4)]
        assert column[: number + 1] == [base[0][number]] * (number + 1)
        assert len(set(column[number + 1 :])) == 1 and column[number + 1] != base[0][number]
    assert separate[1][0] == lora[1][0]
    assert joint[1] == joint[2] == joint[3] != joint[0]
    assert result.methods[2].records[0].curves["loss"].steps == list(range(1, 13))  # 3 domains × 4
    assert len(result.methods[2].records[1].curves.get("loss", Curve()).steps) == 0
    assert [method.summary["keeps_old_data"] for method in result.methods] == [0.0, 0.0, 1.0, 0.0]
    assert set(result.methods[1].general_nats) == {result.methods[0].general_nats[0]}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"recipe": "lora", "penalty_weight": 1.0}, "'penalty_weight' has no effect on the recipe 'lora'"),
        ({"recipe": "crma", "replay_ratio": 0.1}, "'replay_ratio' has no effect on the recipe 'crma'"),
        ({"recipe": "base", "learning_rate": 0.1}, "'learning_rate' has no effect on the recipe 'base'"),
        ({"recipe": "replay", "replay_capacity": 3}, "the replay buffer is smaller than a batch"),
    ],
)
def test_what_cannot_act_is_refused_before_anything_is_loaded(tiny_run, method, message):
    config = tiny_run.config(method)
    with pytest.raises(ConfigError, match=message) as error:
        run_config(config.model_copy(update={"base": BaseConfig(model="nowhere")}))
    assert 3 <= len(str(error.value).splitlines()) <= 4
    assert not (tiny_run.folder / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [{"penalty_weight": -1.0}, {"replay_ratio": 1.5}, {"replay_ratio": -0.1}, {"replay_capacity": 0}],
)
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(ValidationError):
        MethodConfig(recipe="replay", **setting)


def test_joint_cannot_grow(tiny_run):
    tiny_run("joint", names=DOMAINS[:2])
    with pytest.raises(WorkspaceError, match="settings changed"):
        tiny_run("joint")

"""What holds for every named method: it runs, goes on where it stopped, and says what it kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from constrained_adapters.config.run import BaseConfig, MethodConfig
from constrained_adapters.errors import ConfigError, UsageError, WorkspaceError
from constrained_adapters.memory.diagonal import DiagonalMemory
from constrained_adapters.recipes import RECIPES, find_recipe
from constrained_adapters.rehearsal import KeptFile
from constrained_adapters.results import Curve
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.run import run_config

from .conftest import DOMAINS, StopAt, StopError, numbers

COMBINATIONS = [
    "lora + replay + ewc",
    "crma + replay + distillation + stm",
    "olora + ewc_lora",
    "full + replay + distillation",
    "joint + full",
    "lora + online_ewc + general_text",
    "full + ogd",
    "bitfit + agem",
    "separate + houlsby",
    "houlsby + ewc",
]


# What a base of random weights asks for: every token surprises it.
SETTINGS = {
    "stm": {"stm_threshold": 250.0},
    "general_text": {"general_ratio": 0.25},
    "full + ogd": {"ogd_directions": 5},
    "generative_replay": {"generated_examples": 3, "generated_ratio": 0.25},
}


def method_of(recipe: str, folder: Path | None = None, **settings):
    for name in {"general_text", "golden_set"} & set(recipe.split(" + ")):
        settings[name] = str(folder / "general.jsonl")
    for name in [recipe, *recipe.split(" + ")]:
        settings |= SETTINGS.get(name, {})
    return {"recipe": recipe, **settings}


@pytest.mark.parametrize("recipe", [*RECIPES, *COMBINATIONS])
def test_it_runs_goes_on_where_it_stopped_and_its_result_is_complete(tiny_run, recipe):
    if "bitfit" in recipe:
        tiny_run.save_base_with_biases()
    method, names = method_of(recipe, tiny_run.folder), DOMAINS if recipe in RECIPES else DOMAINS[:2]
    whole = tiny_run(method, names=names, output="whole")
    check_complete(whole, recipe, names)
    turn = "law" if {"joint", "isolation"} & set(recipe.split(" + ")) else "数学"  # the one with most to lose
    early = turn == "law" or len(names) > 2  # the step comes before the row
    stops = [StopAt(step=(turn, 3)), StopAt(row=len(names) - 1)]
    for stop in stops[1:] if recipe == "base" else stops if early else stops[::-1]:
        with pytest.raises(StopError):
            tiny_run(method, names=names, output="stopped", observer=stop)
    stopped = tiny_run(method, names=names, output="stopped")
    assert numbers(stopped.methods[0].model_dump()) == numbers(whole.methods[0].model_dump())


def check_complete(result, recipe: str, names: list[str]) -> None:
    method = result.methods[0]
    assert [record.name for record in method.records] == method.domains == names
    for matrix in method.matrices.values():
        assert len(matrix) == len(names) + 1 and all(cell is not None for row in matrix for cell in row)
    assert all(value is not None for value in method.general_nats)
    assert {"train_seconds", "step_seconds", "bytes_per_domain"} <= set(method.summary)
    assert method.summary["peak_memory_bytes"] > 0
    assert method.summary["keeps_old_data"] == float(find_recipe(MethodConfig(recipe=recipe)).keeps_old_data)
    assert len(method.samples) == len(names)
    moved = method.matrices["loss"][0] != method.matrices["loss"][-1]
    assert moved == (recipe != "base")
    assert [entry["domain"] for entry in result.ledger] == names


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
    buffer = KeptFile(kept, private=False).read()
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
        ({"recipe": "gem", "replay_capacity": 3}, "the replay buffer is smaller than a batch"),
        (
            {"recipe": "replay + general_text", "replay_ratio": 0.6, "general_ratio": 0.5},
            "more is mixed in than there is room for",
        ),
        ({"recipe": "full + generative_replay"}, "could not find its examples again"),
        ({"recipe": "full + olora"}, "'full' and 'olora' do not go together"),
    ],
)
def test_what_cannot_act_is_refused_before_anything_is_loaded(tiny_run, method, message):
    config = tiny_run.config(method, private="full + generative" in method["recipe"])
    with pytest.raises(ConfigError, match=message) as error:
        run_config(config.model_copy(update={"base": BaseConfig(model="nowhere")}))
    assert 3 <= len(str(error.value).splitlines()) <= 4
    assert not (tiny_run.folder / "out").exists()


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({"recipe": "replay", "replay_capacity_bytes": 40}, {}),
        ({"recipe": "lora + gem", "replay_capacity_bytes": 900}, {}),
        ({"recipe": "agem"}, {"batch_size": 1001}),  # more than the default
    ],
)
def test_a_buffer_that_holds_no_batch_is_refused_before_anything_is_trained(tiny_run, method, training):
    with pytest.raises(ConfigError, match=r"smaller than a batch(?s:.*)at least") as error:
        tiny_run(method, training=training)
    assert 3 <= len(str(error.value).splitlines()) <= 4
    assert not (tiny_run.folder / "out").exists()


def test_rows_too_short_to_be_written_are_refused_before_anything_is_trained(tiny_run):
    with pytest.raises(
        ConfigError, match=r"no example of 'law'(?s:.*)max_length_tokens = 20(?s:.*)at least 21"
    ):
        tiny_run("lora + generative_replay", training={"max_length_tokens": 20})
    assert not (tiny_run.folder / "out").exists()


def test_general_text_against_collapse_counts_among_what_is_mixed_in(tiny_run):
    method = {"recipe": "replay", "replay_ratio": 0.95}
    config = tiny_run.config(method, prevent_collapse={"general_ratio": 0.1})
    with pytest.raises(ConfigError, match=r"more is mixed in(?s:.*)0.95 \(replay\) \+ 0.1 \(general_text\)"):
        run_config(config)
    assert not (tiny_run.folder / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"penalty_weight": -1.0},
        {"penalty_weight": {"ewc": -1.0}},
        {"replay_ratio": 1.5},
        {"replay_ratio": -0.1},
        {"replay_capacity": 0},
        {"label_smoothing": 1.0},
        {"stm_threshold": 1.0},
        {"ewc_decay": 1.1},
        {"frozen_ratio": -0.1},
        {"width": 0},
    ],
)
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(ValidationError):
        MethodConfig(recipe="replay", **setting)


def test_joint_cannot_grow(tiny_run):
    tiny_run("joint", names=DOMAINS[:2])
    with pytest.raises(WorkspaceError, match="settings changed"):
        tiny_run("joint")


@pytest.mark.parametrize(
    ("recipe", "plain"), [("ewc_lora", "lora"), ("olora", "lora"), ("ewc", "full"), ("crma", "lora")]
)
def test_without_penalty_or_strength_it_is_the_plain_method_bit_for_bit(tiny_run, recipe, plain):
    setting = {"constraint_strength": 0.0} if recipe == "crma" else {"penalty_weight": 0.0}
    free = {"recipe": recipe, "name": "free", **setting}
    result = tiny_run(plain, free, {"recipe": recipe, "name": "bound"}, names=DOMAINS[:2])
    assert matrices(result, 1) == matrices(result, 0)
    assert result.methods[1].general_nats == result.methods[0].general_nats
    assert matrices(result, 2)["loss"][1] == matrices(result, 0)["loss"][1] or recipe == "crma"
    assert matrices(result, 2)["loss"][2:] != matrices(result, 0)["loss"][2:]
    folder = tiny_run.folder / "out"
    assert not list((folder / "free" / "memory").rglob("*.safetensors"))
    weights = sorted(
        path.relative_to(folder / plain) for path in (folder / plain).rglob("*model.safetensors")
    )
    assert weights
    for path in weights:
        assert (folder / plain / path).read_bytes() == (folder / "free" / path).read_bytes()


@pytest.mark.parametrize("recipe", ["ewc", "ewc_lora", "olora"])
def test_a_penalty_is_seen_in_the_curves_of_every_domain_but_the_first(tiny_run, recipe):
    records = tiny_run(recipe, names=DOMAINS[:2]).methods[0].records
    assert "penalty" not in records[0].curves
    for record in records[1:]:
        assert record.curves["penalty"].steps == [1, 2, 3, 4]
        assert any(value > 0 for value in record.curves["penalty_ratio"].values)
        assert all(-1.0 <= value <= 1.0 for value in record.curves["penalty_cosine"].values)
        assert record.constraint["penalty_weight"] > 0


@pytest.mark.parametrize(
    ("method", "plain"),
    [
        ({"recipe": "distillation", "distillation_weight": 0.0}, "lora"),
        ({"recipe": "stm", "stm_threshold": 1e30}, "lora"),
        ({"recipe": "lora", "name": "sharp", "label_smoothing": 0.0}, "lora"),
        ({"recipe": "houlsby + ewc", "penalty_weight": 0.0}, "houlsby"),
        ({"recipe": "isolation", "shared_rank": 0}, "separate"),
        ({"recipe": "freeze_important", "frozen_ratio": 0.0}, "full"),
        ({"recipe": "online_ewc", "penalty_weight": 0.0}, "full"),
        ({"recipe": "online_ewc", "name": "summed", "ewc_decay": 0.0, "penalty_weight": 0.0}, "full"),
        ({"recipe": "general_text", "general_ratio": 0.0}, "lora"),
        ({"recipe": "gem_predicted", "constraint_strength": 0.0}, "lora"),
        ({"recipe": "crma", "constraint_type": "none"}, "lora"),
    ],
)
def test_an_answer_without_weight_is_not_there(tiny_run, method, plain):
    result = tiny_run(plain, method, names=DOMAINS[:2])
    # Rows with columns are read in another order of sums, so not bit for bit.
    np.testing.assert_allclose(matrices(result, 1)["loss"], matrices(result, 0)["loss"], rtol=1e-4)


def test_what_is_minimised_shows(tiny_run):
    result = tiny_run("lora", method_of("stm + distillation", label_smoothing=0.1), names=DOMAINS[:2])
    record = result.methods[1].records[1]
    assert record.curves["loss_distillation"].steps == [1, 2, 3, 4]
    assert 0.1 < record.constraint["masked_ratio"] < 0.9
    assert matrices(result, 1)["loss"][2] != matrices(result, 0)["loss"][2]


def test_isolation_gives_each_domain_its_layers_and_rank_and_keeps_what_was_learnt(tiny_run):
    own = {
        "recipe": "isolation",
        "domain_layers": {"数学": ["q_proj"], "Право": ["mlp.up_proj", "v_proj"]},
        "domain_ranks": {"Право": 3},
        "shared_rank": 1,
    }
    result = tiny_run(own, "separate")
    matrix = matrices(result)["loss"]
    for number in range(3):  # a finished domain stays exactly as it was, one to come is the base's
        assert len({row[number] for row in matrix[number + 1 :]}) == 1
        assert len({row[number] for row in matrix[: number + 1]}) == 1
    home = tiny_run.folder / "out" / "isolation"
    shapes = {
        name: {
            key.rpartition(".layers.")[2].split(".lora_")[0]: tuple(value.shape)
            for key, value in load_file(home / place / "adapter_model.safetensors").items()
            if "lora_A" in key
        }
        for name, place in [("shared", "memory/shared"), *((name, f"adapters/{name}") for name in DOMAINS)]
    }
    assert {shape[0] for shape in shapes["shared"].values()} == {1}
    assert {name.rpartition(".")[2] for name in shapes["law"]} == {"q_proj", "v_proj", "o_proj"}
    assert {name.rpartition(".")[2] for name in shapes["数学"]} == {"q_proj"}
    assert {name.rpartition(".")[2] for name in shapes["Право"]} == {"up_proj", "v_proj"}
    assert {shape[0] for shape in shapes["Право"].values()} == {3}
    files = [*home.rglob("adapter_model.safetensors"), *home.rglob("routing.safetensors")]
    kept = sum(path.stat().st_size for path in files)
    assert round(3 * result.methods[0].summary["bytes_per_domain"]) == kept


@pytest.mark.parametrize(
    ("method", "adapter", "message"),
    [
        ({"domain_layers": {"lau": ["q_proj"]}}, {}, r"no domain named 'lau'(?s:.*)Try: +law"),
        ({"domain_ranks": {"music": 2}}, {}, "no domain named 'music'"),
        ({}, {"rank": "auto"}, "isolation gives each domain its rank"),
        ({"domain_layers": {"law": ["w_proj"]}}, {}, "no linear layer named 'w_proj'"),
    ],
)
def test_isolation_refuses_what_it_cannot_do(tiny_run, method, adapter, message):
    config = tiny_run.config({"recipe": "isolation", **method}, **({"adapter": adapter} if adapter else {}))
    with pytest.raises(UsageError, match=message):
        run_config(config)
    assert not (tiny_run.folder / "out").exists()


def test_what_a_base_lacks_is_refused_before_the_first_method_is_trained(tiny_run):
    with pytest.raises(ConfigError, match=r"this base has no biases(?s:.*)Try: +lora") as error:
        tiny_run("lora", "bitfit")
    assert len(str(error.value).splitlines()) == 4
    with pytest.raises(ConfigError, match="freeze_last of 2 decoder layers"):
        tiny_run("lora", {"recipe": "freeze_last", "num_layers": 2})
    assert not (tiny_run.folder / "out").exists()


def test_a_fresh_run_does_not_read_what_the_old_one_remembered(tiny_run):
    before = tiny_run("ewc", names=DOMAINS[:2])
    config = tiny_run.config("ewc", names=DOMAINS[:2], seed=1)
    run_config(config, fresh=True)
    again = run_config(tiny_run.config("ewc", names=DOMAINS[:2]), fresh=True)
    assert numbers(again.methods[0].model_dump()) == numbers(before.methods[0].model_dump())


@pytest.mark.parametrize("selection", ["reservoir", "highest_loss"])
def test_a_private_run_writes_no_example_and_goes_on_with_the_same_ones(tiny_run, selection):
    method = {"recipe": "replay + agem", "replay_ratio": 0.5, "replay_selection": selection}
    open_run = tiny_run(method, output="open")
    with pytest.raises(StopError):
        tiny_run(method, output="private", private=True, observer=StopAt(row=2))
    private = tiny_run(method, output="private", private=True)
    assert matrices(private) == matrices(open_run)
    assert not private.methods[0].samples and open_run.methods[0].samples
    assert list((tiny_run.folder / "open").rglob("replay_buffer*"))
    assert not list((tiny_run.folder / "private").rglob("replay_buffer*"))
    written = "".join(
        path.read_text(encoding="utf-8") for path in (tiny_run.folder / "private").rglob("*.json*")
    )
    assert "law 3?" not in written


def test_important_weights_learn_slower_from_the_second_domain_on(tiny_run):
    methods = [
        {"recipe": "ewc", "name": name, "penalty_weight": 1e-9, "rate_by_importance": by}
        for name, by in [("even", None), ("layers", "layer"), ("parameters", "parameter")]
    ]
    result = tiny_run(*methods, names=DOMAINS[:2])
    even, layers, parameters = (matrices(result, number)["loss"] for number in range(3))
    assert even[1] == layers[1] == parameters[1]
    assert even[2] != layers[2] != parameters[2] != even[2]
    with pytest.raises(ConfigError, match="'slowest_rate_ratio' has no effect without 'rate_by_importance'"):
        find_recipe(MethodConfig(recipe="ewc", slowest_rate_ratio=0.5))


@pytest.mark.parametrize(
    ("recipe", "plain"), [("ewc", "full"), ("lora + ewc", "lora"), ("houlsby + ewc", "houlsby")]
)
@pytest.mark.parametrize("by", ["layer", "parameter"])
def test_rates_go_by_importance_without_any_penalty(tiny_run, recipe, plain, by):
    slow = {"recipe": recipe, "name": "slow", "penalty_weight": 0.0, "rate_by_importance": by}
    result = tiny_run(plain, slow, names=DOMAINS[:2])
    assert matrices(result, 0)["loss"][1] == matrices(result, 1)["loss"][1]
    assert matrices(result, 0)["loss"][2] != matrices(result, 1)["loss"][2]


def test_written_examples_are_mixed_in_and_nothing_of_the_data_is_kept(tiny_run):
    method = {"recipe": "generative_replay", "generated_examples": 3, "generated_ratio": 0.5}
    result = tiny_run(method, {**method, "name": "less", "generated_ratio": 0.0}, names=DOMAINS[:2])
    home = tiny_run.folder / "out" / "generative_replay"
    written = KeptFile(home / "memory" / "written_examples.safetensors", private=False).read()
    assert list(written.rows) == DOMAINS[:2]
    assert all(1 <= len(rows) <= 3 for rows in written.rows.values())
    assert matrices(result, 0)["loss"][1] == matrices(result, 1)["loss"][1]  # nothing is written yet
    assert matrices(result, 0)["loss"][2] != matrices(result, 1)["loss"][2]
    assert result.methods[0].summary["keeps_old_data"] == 0.0
    assert not list(home.rglob("replay_buffer*"))


def test_a_model_that_writes_nothing_is_told_and_the_run_goes_on(tiny_run, monkeypatch):
    class Told(SilentObserver):
        def stage(self, method: str, domain: str | None, text: str) -> None:
            told.append(text)

    def only_ends(model, prompts, *, ends, **settings):
        return [[ends[0]] for _ in prompts]

    told: list[str] = []
    monkeypatch.setattr("constrained_adapters.rehearsal.generative.continue_prompts", only_ends)
    result = tiny_run("lora + generative_replay", names=DOMAINS[:2], observer=Told())
    assert len(result.methods[0].records) == 2
    assert "law: the model wrote no example of it, so none will be mixed in" in told


def test_the_golden_set_that_the_base_writes_is_mixed_in_from_the_first_domain_on(tiny_run):
    method = {"recipe": "golden_set", "golden_ratio": 0.5}
    result = tiny_run("lora", method, names=DOMAINS[:1])
    kept = KeptFile(tiny_run.folder / "out/golden_set/memory/golden_set.safetensors", private=False).read()
    assert set(kept.rows) == {"facts", "reasoning", "language"} and kept.rows["language"]
    assert matrices(result, 0)["loss"][1] != matrices(result, 1)["loss"][1]


@pytest.mark.parametrize("recipe", ["gem", "agem", "ogd", "full + ogd", "freeze_important"])
def test_what_takes_from_the_gradient_is_seen_from_the_second_domain_on(tiny_run, recipe):
    records = tiny_run(method_of(recipe), names=DOMAINS[:2]).methods[0].records
    assert "removed_ratio" not in records[0].curves
    assert records[1].curves["removed_ratio"].steps == [1, 2, 3, 4]


def test_two_penalties_are_seen_by_name_and_without_weight_are_not_there(tiny_run):
    free = {"recipe": "olora + ewc_lora", "name": "free", "penalty_weight": {"olora": 0.0, "ewc_lora": 0.0}}
    result = tiny_run("lora", free, "olora + ewc_lora", names=DOMAINS[:2])
    assert matrices(result, 1) == matrices(result, 0) != matrices(result, 2)
    record = result.methods[2].records[1]
    for name, weight in {"olora": 0.5, "ewc_lora": 1000.0}.items():
        assert record.curves[f"{name}_penalty"].steps == [1, 2, 3, 4]
        assert record.constraint[f"{name}_penalty_weight"] == weight
    entries = [entry for entry in result.ledger if entry["method"] == "olora + ewc_lora"]
    assert entries[1]["penalty_weight"] == {"ewc_lora": 1000.0, "olora": 0.5}


@pytest.mark.parametrize(
    ("combination", "plain"),
    [("lora + replay", "replay"), ("replay + lora + ewc", "ewc_lora + replay"), ("crma + lora", "crma")],
)
def test_two_names_of_one_method_give_one_result(tiny_run, combination, plain):
    result = tiny_run(combination, plain, names=DOMAINS[:2])
    assert matrices(result, 0) == matrices(result, 1)


def test_what_binds_a_combination_shows_in_the_curves_of_each_part(tiny_run):
    record = tiny_run("crma + ewc_lora", names=DOMAINS[:2]).methods[0].records[1]
    assert record.curves["penalty"].steps == record.curves["removed_ratio"].steps == [1, 2, 3, 4]
    assert record.constraint["penalty_weight"] == 100.0 and record.constraint["closed_ratio"] > 0
    assert record.constraint["ewc_lora_penalty_weight"] == 1000.0
    assert record.curves["ewc_lora_penalty"].values != record.curves["penalty"].values


def test_what_two_bounds_take_from_the_gradient_is_not_written_over_one_another(tiny_run):
    alone = tiny_run("crma", names=DOMAINS[:2], output="alone").methods[0].records[1]
    both = tiny_run("crma + gem", names=DOMAINS[:2]).methods[0].records[1]
    first = both.curves["removed_ratio"].values[0]  # what memories close does not depend on the examples
    assert first == pytest.approx(alone.curves["removed_ratio"].values[0], rel=0.2)
    assert both.curves["gem_removed_ratio"].steps == [1, 2, 3, 4]
    assert both.constraint["gem_num_old_gradients"] == 1.0


def test_a_heavy_penalty_keeps_the_weights_that_mattered(tiny_run):
    def moved(weight: float) -> float:
        """How far the importance says that the last domain has moved the model."""
        out = f"w{weight}"
        tiny_run({"recipe": "ewc", "penalty_weight": weight}, output=out, names=DOMAINS[:2])
        memory = DiagonalMemory.load(tiny_run.folder / out / "ewc/memory/importance/importance.safetensors")
        return memory.constant  # Σ F₁F₂/(F₁+F₂) (θ₂ − θ₁)²

    assert moved(1e6) < 0.5 * moved(1e-6)


@pytest.mark.parametrize("recipe", ["full", "ewc", "osf"])
def test_only_the_last_weights_stay_and_the_base_is_given_back(tiny_run, recipe):
    result = tiny_run(recipe, "base")
    homes = [tiny_run.folder / "out" / recipe / "adapters" / name for name in DOMAINS]
    assert [(home / "model.safetensors").exists() for home in homes] == [False, False, True]
    base = matrices(result, 1)["loss"]
    assert base[3] == base[0] == matrices(result, 0)["loss"][0]
    kept = sum(record.adapter_bytes + record.memory_bytes for record in result.methods[0].records)
    assert kept == (homes[2] / "model.safetensors").stat().st_size
    with pytest.raises(WorkspaceError, match="settings changed"):
        tiny_run(recipe, "base", names=DOMAINS[:2])


def test_osf_moves_only_the_adapted_layers_off_their_leading_singular_vectors(tiny_run):
    tiny_run("osf", names=DOMAINS[:1], output="one", training={"weight_decay": 0.0})
    base = load_file(tiny_run.folder / "base" / "model.safetensors")
    after = load_file(tiny_run.folder / "one" / "osf" / "adapters" / "law" / "model.safetensors")
    assert {name.split(".")[4] for name in after} == {"q_proj", "v_proj", "o_proj"}
    for name, weight in after.items():
        assert not torch.equal(weight, base[f"{name}.weight"])
    records = tiny_run("osf").methods[0].records
    shares = [record.constraint["preserved_ratio"] for record in records]
    assert shares[0] < 0.1 and 0.25 < shares[1] <= 1 / 3 and 0.6 < shares[2] <= 2 / 3


@pytest.mark.parametrize("epochs", [0.4, 1.0, 1.7])
def test_replay_takes_as_many_steps_as_plain_lora(tiny_run, epochs):
    training = {"steps": None, "epochs": epochs, "gradient_accumulation_steps": 2, "batch_size": 3}
    result = tiny_run("lora", "replay", training=training, names=DOMAINS[:2])
    plain, replay = ([r.curves["loss"].steps for r in method.records] for method in result.methods)
    assert plain == replay and plain[1]


def test_gradients_are_not_clipped_where_the_norm_is_0(tiny_run):
    free = tiny_run("crma", names=DOMAINS[:2], output="free", training={"max_grad_norm": 0.0})
    wide = tiny_run("crma", names=DOMAINS[:2], output="wide", training={"max_grad_norm": 1e9})
    tight = tiny_run("crma", names=DOMAINS[:2], output="tight", training={"max_grad_norm": 1e-6})
    assert matrices(free, 0) == matrices(wide, 0) != matrices(tight, 0)


def test_the_memory_of_the_base_is_made_of_the_text_that_is_given(tiny_run):
    text = str(tiny_run.folder / "general.jsonl")
    given = {"recipe": "crma", "base_text": text}
    scored = {"general": None}  # in these tests the same file
    told: list[str] = []
    observer = SilentObserver()
    observer.stage = lambda method, domain, words: told.append(words)
    tiny_run(given, names=DOMAINS[:1], output="given", observer=observer, evaluation=scored)
    assert "making the memory of what the base knows" in told
    tiny_run("crma", names=DOMAINS[:1], output="written", observer=observer)
    assert "making the memory of what the base knows, from text that it writes" in told
    kept = [tiny_run.folder / name / "crma/memory/base.safetensors" for name in ("given", "written")]
    assert kept[0].read_bytes() != kept[1].read_bytes()
    Path(text).write_text("".join(f'{{"text": "other text {i}"}}\n' for i in range(30)), encoding="utf-8")
    with pytest.raises(WorkspaceError, match="mixed_texts"):
        tiny_run(given, names=DOMAINS[:1], output="given", evaluation=scored)
    with pytest.raises(ConfigError, match="no effect where the base is not protected"):
        tiny_run({**given, "protect_base": False})
    with pytest.raises(ConfigError, match="'base_text' has no effect on the recipe 'lora'"):
        tiny_run({**given, "recipe": "lora"})


@pytest.mark.parametrize(("asked", "rows"), [(None, 20), (3, 3), (9, 9)])
def test_a_memory_is_made_of_as_many_examples_as_are_asked_for(tiny_run, monkeypatch, asked, rows):
    seen = []
    measure = AdapterLearner.remember

    def remember(self, number, domain, home, given):
        seen.append(len(given))
        measure(self, number, domain, home, given)

    monkeypatch.setattr(AdapterLearner, "remember", remember)
    tiny_run({"recipe": "crma", "gradient_memory_size": asked}, names=DOMAINS[:1])
    assert seen == [rows]


def test_it_is_told_where_token_masking_leaves_little_to_learn(tiny_run):
    told: list[str] = []
    observer = SilentObserver()
    observer.message = told.append
    for threshold in (220.0, 1e6):
        method = {"recipe": "stm", "stm_threshold": threshold}
        tiny_run(method, names=DOMAINS[:1], output=f"{threshold}", observer=observer)
    assert len([each for each in told if "a higher stm_threshold" in each and "law" in each]) == 1

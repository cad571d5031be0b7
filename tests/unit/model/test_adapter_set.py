"""Which adapters there are and which act: weights, names, order mistakes."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from constrained_adapters.adapters.lora import adapter_pairs, delta_weight, lora_layers
from constrained_adapters.errors import AdapterStateError, ConfigError, UnknownNameError, UsageError


def grown(model, *names: str):
    """Make adapters that do something: B far from its small start values."""
    for name in names:
        model.create_adapter(name)
        for pair in adapter_pairs(model, name):
            torch.nn.init.normal_(pair.b, std=0.3)
    return model


def test_an_untrained_adapter_is_almost_the_base_and_neither_matrix_is_zero(make_model, logits):
    model = make_model()
    base = logits(model)
    model.create_adapter("law")
    torch.testing.assert_close(logits(model), base, rtol=0, atol=0)
    model.set_active_adapter("law")
    assert not torch.equal(logits(model), base)
    torch.testing.assert_close(logits(model), base, rtol=1e-2, atol=2e-2)
    assert all(bool(pair.a.any()) and bool(pair.b.any()) for pair in adapter_pairs(model, "law"))


def test_weights_are_the_weighted_sum_of_outputs(make_model):
    model = grown(make_model(), "law", "medicine", "finance")
    model.set_active_adapters(["law", "medicine"])
    weights = {"law": 0.7, "medicine": -0.3}
    model.set_adapter_weights(weights)
    deltas = {
        name: {pair.module: delta_weight(pair) for pair in adapter_pairs(model, name)} for name in weights
    }
    for module, layer in lora_layers(model).items():
        x = torch.randn(3, 5, layer.in_features)
        wanted = layer.base_layer(x) + sum(w * (x @ deltas[name][module].T) for name, w in weights.items())
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_new_active_set_has_weights_of_one(make_model, logits):
    model = grown(make_model(), "law", "medicine")
    model.set_active_adapter("law")
    alone = logits(model)
    model.set_adapter_weights({"law": 0.2})
    assert not torch.equal(logits(model), alone)
    model.set_active_adapters(["law"])
    assert torch.equal(logits(model), alone)
    model.set_active_adapters(["medicine", "law"])
    model.set_adapter_weights({"medicine": 0.0})
    torch.testing.assert_close(logits(model), alone, rtol=1e-5, atol=1e-5)


def test_an_empty_active_set_is_the_base(make_model, logits):
    model = make_model()
    base = logits(model)
    grown(model, "law").set_active_adapter("law")
    active = logits(model)
    model.set_active_adapters([])
    assert torch.equal(logits(model), base)
    model.set_active_adapter("law")
    with model.base_only():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), active)


def test_unload_and_deleting_the_last_give_the_base_back(make_model, logits, tiny_llama):
    wanted = tiny_llama.state_dict()
    model = make_model()
    base = logits(model)
    grown(model, "law", "medicine").set_active_adapters(["law", "medicine"])
    model.delete_adapter("law")
    assert (model.adapter_names, model.active_names) == (["medicine"], ["medicine"])
    model.delete_adapter("medicine")
    assert model.adapter_names == []
    assert torch.equal(logits(model), base)
    grown(model, "law").set_active_adapter("law")
    found = model.unload()
    assert type(found) is type(tiny_llama)
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
    assert torch.equal(logits(model), base)
    grown(model, "law").set_active_adapter("law")
    assert not torch.equal(logits(model), base)


@pytest.mark.parametrize("name", ["数学", "Право", "droit civil", "ölçü", "हिन्दी"])
def test_names_in_any_script(make_model, logits, name):
    model = make_model()
    model.create_adapter(name)
    model.set_active_adapter(name)
    model.set_adapter_weights({name: 0.5})
    model.freeze_adapter(name)
    assert model.active_names == [unicodedata.normalize("NFC", name)]
    model.delete_adapter(name)


def test_a_name_is_found_however_its_accents_are_typed(make_model):
    model = make_model()
    composed, decomposed = "législation", unicodedata.normalize("NFD", "législation")
    assert composed != decomposed
    model.create_adapter(decomposed)
    assert model.adapter_names == [composed]
    model.set_active_adapter(decomposed)
    model.set_adapter_weights({decomposed: 0.5})
    assert model.active_names == [composed]
    with pytest.raises(AdapterStateError, match="already"):
        model.create_adapter(composed)
    model.delete_adapter(decomposed)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "a.b",
        "",
        " law",
        "-x",
        "base",
        "auto",
        "default",
        "train",
        "keys",
        "forward",
        "x" * 101,
    ],
)
def test_names_that_cannot_be_are_refused(make_model, name):
    model = make_model()
    with pytest.raises(ConfigError):
        model.create_adapter(name)
    assert model.adapter_names == []


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.set_active_adapter("laww"),
        lambda model: model.set_active_adapters(["law", "laww"]),
        lambda model: model.set_adapter_weights({"laww": 1.0}),
        lambda model: model.freeze_adapter("laww"),
        lambda model: model.delete_adapter("laww"),
        lambda model: model.save_adapter("folder", "laww"),
        lambda model: model.update_gradient_memory("laww"),
        lambda model: model.gradient_memory("laww"),
        lambda model: model.predicted_increase_nats("laww"),
    ],
)
def test_an_unknown_adapter_is_told_with_the_nearest(make_model, call):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    with pytest.raises(UnknownNameError, match=r"no adapter named 'laww'(?s:.*)Expected: law\n.*Try: +law"):
        call(model)
    assert model.active_names == ["law"]


def batch(rows):
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def test_training_without_an_active_adapter_is_an_error(make_model, rows):
    model = make_model()
    model.train()
    with pytest.raises(AdapterStateError, match="no adapter is active"):
        model(**batch(rows(0)))
    model.create_adapter("law")
    with pytest.raises(AdapterStateError, match=r"no adapter is active(?s:.*)set_active_adapter"):
        model(**batch(rows(0)))
    model.eval()
    assert model(**batch(rows(0))).loss > 0


def test_training_a_frozen_adapter_is_an_error(make_model, rows, train):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    model.freeze_adapter("law")
    model.train()
    with pytest.raises(AdapterStateError, match="'law' is frozen"):
        model(**batch(rows(0)))
    with pytest.raises(AdapterStateError, match="'law' is frozen"):
        train(model, rows(0), "trainer")


def test_weights_of_what_is_not_active_or_no_number_are_errors(make_model):
    model = make_model()
    model.create_adapter("law")
    model.create_adapter("medicine")
    model.set_active_adapter("law")
    with pytest.raises(AdapterStateError, match="'medicine' has a weight but is not active"):
        model.set_adapter_weights({"law": 0.1, "medicine": 0.9})
    for wrong in (float("nan"), float("inf"), "0.5", None):
        with pytest.raises(ConfigError, match="not a finite number"):
            model.set_adapter_weights({"law": wrong})
    layer = next(iter(lora_layers(model).values()))
    assert layer.scaling["law"] == pytest.approx(model.crma_config.residual_scaling)


def test_a_second_domain_wants_the_memory_of_the_first(make_model, rows, train):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    train(model, rows(0))
    model.freeze_adapter("law")
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    with pytest.raises(
        AdapterStateError, match=r"'law' has no gradient memory(?s:.*)update_gradient_memory\('law'\)"
    ):
        model.enable_constrained_training(True)
    model.update_gradient_memory("law")
    assert model.constraint_facts()["closed_ratio"] > 0
    train(model, rows(1), max_steps=1)


def test_a_second_domain_by_itself_warns_that_the_first_is_not_remembered(make_model, rows, train):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    train(model, rows(0), max_steps=1)
    model.create_adapter("medicine")
    model.set_active_adapter("medicine")
    with pytest.warns(UserWarning, match="'law' has no gradient memory"):
        model.enable_constrained_training(True)


def test_a_memory_wants_its_adapter_active_and_something_seen(make_model, rows, train):
    model = make_model()
    model.create_adapter("law")
    with pytest.raises(AdapterStateError, match="not active"):
        model.update_gradient_memory("law")
    model.set_active_adapter("law")
    with pytest.raises(AdapterStateError, match="nothing was seen"):
        model.update_gradient_memory("law")


def test_the_same_name_twice_and_a_merge_of_nothing_are_errors(make_model):
    model = make_model()
    with pytest.raises(AdapterStateError, match="nothing to merge"):
        model.merge_and_unload()
    model.create_adapter("law")
    with pytest.raises(AdapterStateError, match="already"):
        model.create_adapter("law")
    with pytest.raises(AdapterStateError, match="nothing to merge"):
        model.merge_and_unload()


def test_a_layer_that_does_not_exist_is_told_with_those_that_do(make_model):
    with pytest.raises(UsageError, match="q_proj"):
        make_model(domain_specific_layers=["q_porj"])

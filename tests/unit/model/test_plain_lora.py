"""With ``constraint_strength=0`` a CRMA adapter is a plain LoRA of PEFT, alone bit for bit."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LAYERS = ["q_proj", "v_proj", "o_proj"]


@pytest.fixture
def plain(base_folder):
    """PEFT's own model with the adapters of another as start values."""

    def make(model, *names: str):
        base = AutoModelForCausalLM.from_pretrained(base_folder).eval()
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=LAYERS, task_type="CAUSAL_LM")
        made = get_peft_model(base, config, adapter_name=names[0])
        for name in names[1:]:
            made.add_adapter(name, config)
        theirs = dict(model.named_parameters())
        with torch.no_grad():
            for key, value in made.named_parameters():
                if "lora_" in key:
                    value.copy_(theirs[key])
        return made

    return make


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    "settings",
    [
        {"constraint_strength": 0.0},
        {"use_gradient_constraint": False},
        {"constraint_type": "none"},
    ],
    ids=lambda each: next(iter(each)),
)
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}], ids=["1x4", "2x4"])
def test_one_domain_is_plain_lora(make_model, plain, rows, train, weights_of, settings, arguments):
    model = make_model(**settings)
    model.create_adapter("law")
    model.set_active_adapter("law")
    model.enable_constrained_training(True)
    reference = plain(model, "law")
    start = weights_of(model, "law")
    train(model, rows(0), "trainer", **arguments)
    train(reference, rows(0), "trainer", **arguments)
    assert_same(weights_of(model, "law"), weights_of(reference, "law"))
    assert all(not torch.equal(value, start[key]) for key, value in weights_of(model, "law").items())


def test_a_second_domain_is_plain_lora_beside_a_frozen_one(
    make_model, plain, rows, train, finish, weights_of
):
    model = make_model(constraint_strength=0.0)
    finish(model, "law", rows(0))
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    model.enable_constrained_training(True)
    reference = plain(model, "law", "medicine")
    reference.base_model.set_adapter(["law", "medicine"])
    for key, value in reference.named_parameters():
        value.requires_grad_("lora_" in key and ".medicine." in key)
    train(model, rows(1), "trainer")
    train(reference, rows(1), "trainer")
    wanted = weights_of(reference, "medicine")
    for key, value in weights_of(model, "medicine").items():  # beside a folded adapter: other rounding
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-4)
    assert_same(weights_of(model, "law"), weights_of(reference, "law"))


def test_accumulating_is_the_same_as_one_batch(make_model, rows, train, weights_of):
    found = []
    for batch, accumulated in ((8, 1), (2, 4)):
        model = make_model(constraint_strength=0.8)
        model.create_adapter("law")
        model.set_active_adapter("law")
        train(
            model,
            rows(0),
            "trainer",
            max_steps=2,
            gradient_accumulation_steps=accumulated,
            per_device_train_batch_size=batch,
        )
        found.append(weights_of(model, "law"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-5)

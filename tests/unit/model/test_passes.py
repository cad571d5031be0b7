"""The active set in a model: folded where it is frozen, exactly PEFT's output, the base never touched."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.adapters.lora import adapter_pairs, lora_layers
from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.models.load import LoadedBase


def grown(model, *names: str, frozen: bool = True):
    """Adapters that do something."""
    for name in names:
        model.create_adapter(name)
        for pair in adapter_pairs(model, name):
            torch.nn.init.normal_(pair.b, std=0.3)
        if frozen:
            model.freeze_adapter(name)
    return model


@contextmanager
def peft_loop(model):
    """Within it PEFT's own layers compute: their state is no more the one we gave them."""
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer._active_adapter = list(layer._active_adapter)
    yield
    model._apply_layers()


def folds(model):
    return [adapted.fold for adapted in model._acting.layers.values()]


def base_weights(model):
    return {
        name: (value.data_ptr(), value.detach().clone())
        for name, value in model.named_parameters()
        if "lora_" not in name
    }


def assert_untouched(model, before):
    for name, value in model.named_parameters():
        if "lora_" not in name:
            assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1]), name


def test_frozen_adapters_are_folded_and_the_base_stays_as_it_is(make_model, logits, tmp_path):
    model = make_model()
    plain = logits(model)
    grown(model, "law", "medicine", "finance")
    before = base_weights(model)
    model.set_active_adapters(["law", "medicine", "finance"])
    model.set_adapter_weights({"law": 0.7, "medicine": -0.4})
    found = logits(model)
    assert all(fold.in_force for fold in folds(model))
    with peft_loop(model):
        wanted = logits(model)
    assert not torch.equal(found, wanted)  # the loop was another computation
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert fingerprint_model(model.get_base_model()) == model.base_fingerprint
    with model.base_only():
        assert torch.equal(logits(model), plain)
        with model.disable_adapter():
            assert torch.equal(model.get_base_model()(torch.arange(20, 40)[None]).logits, plain)
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), found)
    model.save_pretrained(tmp_path / "set")
    assert_untouched(model, before)
    base = model.unload()
    assert torch.equal(logits(model), plain) and torch.equal(logits(base), plain)
    assert not any(hasattr(module, "lora_A") for module in base.modules())


def test_a_direct_call_of_the_base_and_of_its_decoder_sees_the_set(make_model, logits):
    model = grown(make_model(), "law", "medicine")
    ids = torch.arange(20, 40)[None]
    model.set_active_adapters(["law", "medicine"])
    direct = model.get_base_model()(ids).logits
    assert torch.equal(direct, logits(model))
    hidden = model.get_base_model().model(ids).last_hidden_state
    model.set_active_adapter("law")
    assert not torch.equal(model.get_base_model().model(ids).last_hidden_state, hidden)
    model.set_active_adapters(["law", "medicine"])
    assert torch.equal(model.get_base_model().model(ids).last_hidden_state, hidden)


def test_changing_the_set_computes_nothing_and_later_uses_the_same_memory(make_model, logits):
    model = grown(make_model(), "law", "medicine")
    model.set_active_adapter("law")
    law = logits(model)
    places = [fold.weight.data_ptr() for fold in folds(model)]
    values = [fold.weight.clone() for fold in folds(model)]
    model.set_active_adapter("medicine")
    model.set_adapter_weights({"medicine": 3.0})
    assert all(torch.equal(fold.weight, value) for fold, value in zip(folds(model), values, strict=True))
    assert not torch.equal(logits(model), law)
    assert places == [fold.weight.data_ptr() for fold in folds(model)]
    model.set_active_adapter("law")
    assert torch.equal(logits(model), law)
    model.set_active_adapters([])
    logits(model)
    assert not any(fold.in_force for fold in folds(model))


def test_an_adapter_in_training_stays_live_and_gets_the_same_gradient(make_model, rows):
    model = grown(grown(make_model(), "law", "medicine"), "finance", frozen=False)
    model.set_active_adapters(["law", "finance", "medicine"])
    model.train()
    batch = {key: torch.tensor([row[key] for row in rows(0)]) for key in rows(0)[0]}

    def gradients():
        model(**batch).loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    folded = gradients()
    assert all(fold.in_force for fold in folds(model))
    with peft_loop(model):
        wanted = gradients()
    assert folded.keys() == wanted.keys() and all(".finance." in name for name in folded)
    for name, value in folded.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    for name, value in gradients().items():
        assert torch.equal(value, folded[name])


def test_memories_see_the_folded_set_and_that_of_the_base_does_not(make_model, rows, train):
    model = make_model()
    base = model.make_base_memory(num_texts=4, length_tokens=8).to_bytes()
    grown(model, "law")
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    train(model, rows(0), max_steps=1)
    model.freeze_adapter("medicine")
    folded = model.update_gradient_memory("medicine")
    assert all(fold.in_force for fold in folds(model))
    assert model.make_base_memory(num_texts=4, length_tokens=8).to_bytes() == base
    with peft_loop(model):
        looped = model.update_gradient_memory("medicine")
    for key, kinds in folded.inputs.items():
        energy = looped.inputs[key]["energy"].dense()
        assert float((kinds["energy"].dense() - energy).norm() / energy.norm()) < 1e-2


@pytest.mark.parametrize("through", ["model", "base"])
def test_a_move_or_a_cast_takes_the_fold_along(make_model, logits, through):
    model = grown(make_model(), "law", "medicine")
    model.set_active_adapters(["law", "medicine"])
    before = logits(model)
    (model if through == "model" else model.get_base_model()).to(torch.float64)
    found = logits(model)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, before.double(), rtol=1e-3, atol=1e-3)
    assert all(fold.weight.dtype == torch.float64 for fold in folds(model))
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_loading_over_adding_and_deleting_while_folded(make_model, logits, tmp_path):
    model = grown(make_model(), "law", "medicine")
    model.save_adapter(tmp_path / "law", "law")
    model.set_active_adapters(["law", "medicine"])
    both = logits(model)
    with torch.no_grad():
        for pair in adapter_pairs(model, "law"):
            pair.b.zero_()
    model.set_active_adapters(["law", "medicine"])
    without = logits(model)
    assert not torch.allclose(without, both, atol=1e-3)
    model.load_adapter(tmp_path / "law", "law")  # as a Trainer that resumes does
    assert torch.equal(logits(model), both)
    model.load_adapter(tmp_path / "law", "third")
    grown(model, "fourth")
    assert torch.equal(logits(model), both)
    model.delete_adapter("law")
    torch.testing.assert_close(logits(model), without, rtol=1e-4, atol=1e-4)
    model.delete_adapter("medicine")
    with model.base_only():
        base = logits(model)
    assert torch.equal(logits(model), base)


def test_a_merge_after_folding_starts_from_the_base(make_model, logits):
    model = grown(make_model(), "law", "medicine")
    model.set_active_adapters(["law", "medicine"])
    model.set_adapter_weights({"law": 0.5})
    wanted = logits(model)
    model.merge_and_unload()
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


def test_a_copy_is_a_model_of_its_own(make_model, logits):
    model = grown(make_model(), "law", "medicine")
    model.set_active_adapter("law")
    law = logits(model)
    other = copy.deepcopy(model)
    other.set_active_adapter("medicine")
    medicine = logits(other)
    assert not torch.equal(medicine, law)
    assert torch.equal(logits(model), law)
    model.set_active_adapter("medicine")
    assert torch.equal(logits(model), medicine)


def test_a_trainer_that_resumes_beside_folded_adapters_makes_the_same_adapter(
    make_model, rows, train, weights_of, tmp_path
):
    def prepared():
        torch.manual_seed(5)
        model = grown(make_model(), "law")
        model.create_adapter("medicine")
        model.set_active_adapters(["law", "medicine"])
        return model

    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "output_dir": str(tmp_path / "t")}
    whole = prepared()
    law = weights_of(whole, "law")
    train(whole, rows(1), "trainer", **settings)
    from transformers import Trainer, TrainingArguments, default_data_collator

    again = prepared()
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "seed": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "output_dir": str(tmp_path),
    }
    trainer = Trainer(
        model=again,
        args=TrainingArguments(**arguments),
        train_dataset=rows(1),
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    assert again.active_names == ["law", "medicine"]
    for name, wanted in (("medicine", weights_of(whole, "medicine")), ("law", law)):
        found = weights_of(again, name)
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_transposed_layers_of_gpt2_are_folded(logits):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
        )
    )
    config = CRMAConfig(base_model_name="gpt2", adapter_dim=3, domain_specific_layers="auto")
    model = CRMAModel.from_base(LoadedBase(base.eval(), None, "", {}), config)
    grown(model, "law", "medicine").set_active_adapters(["law", "medicine"])
    found = logits(model)
    assert all(fold.weight is not None for fold in folds(model))
    with peft_loop(model):
        torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)


def stock(base_folder, folder, **settings):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **settings))
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def test_an_adapted_embedding_is_left_to_peft(base_folder, tmp_path, logits):
    theirs = stock(base_folder, tmp_path / "theirs", target_modules=["q_proj", "embed_tokens"])
    model = CRMAModel.from_pretrained(base_folder, adapters=[tmp_path / "theirs"])
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)
    with model.base_only():
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(base_folder)))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ConfigError, match="cannot act on single rows"), model.mixed_batch(["theirs"]):
        pass


def test_an_adapter_that_replaces_parts_of_the_base_is_refused(base_folder, tmp_path):
    stock(base_folder, tmp_path / "theirs", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="'theirs' replaces parts of the base"):
        CRMAModel.from_pretrained(base_folder, adapters=[tmp_path / "theirs"])


def test_frozen_adapters_stay_frozen_after_an_error_without_them(base_folder, tmp_path):
    stock(base_folder, tmp_path / "theirs", target_modules=["q_proj", "embed_tokens"])
    model = CRMAModel.from_pretrained(base_folder, adapters=[tmp_path / "theirs"])
    with pytest.raises(KeyboardInterrupt), model.base_only():
        raise KeyboardInterrupt
    assert not [name for name, p in model.named_parameters() if p.requires_grad]

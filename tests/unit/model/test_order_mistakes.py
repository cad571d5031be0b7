"""Each call in the wrong order says what is wrong, what was found and what to do instead."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.errors import AdapterStateError, ModelError, TrainingError, WorkspaceError
from constrained_adapters.model.remembering import MEMORY_FILE


def in_training(model, name: str = "law"):
    model.create_adapter(name)
    model.set_active_adapter(name)
    return model


def forward(model, rows):
    model.train()
    return model(**{key: torch.tensor([row[key] for row in rows]) for key in rows[0]}).loss


def test_a_second_domain_beside_a_first_without_memory(make_model, rows, train):
    model = in_training(make_model())
    train(model, rows(0), max_steps=1)
    model.freeze_adapter("law")
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    with pytest.raises(AdapterStateError) as error:
        model.enable_constrained_training(True)
    assert str(error.value).splitlines() == [
        "adapter 'law' has no gradient memory, so nothing would protect it",
        "  Got:      training ['medicine'] beside ['law']",
        "  Try:      update_gradient_memory('law') first, or enable_constrained_training(False)",
    ]
    model.update_gradient_memory("law")
    model.enable_constrained_training(True)
    train(model, rows(1), max_steps=1)


def test_a_second_domain_alone_while_the_first_has_no_memory(make_model, rows, train):
    model = in_training(make_model())
    train(model, rows(0), max_steps=1)
    in_training(model, "medicine")
    wanted = r"'law' has no gradient memory.*update_gradient_memory\('law'\) first"
    with pytest.warns(UserWarning, match=wanted):
        model.enable_constrained_training(True)


def test_training_a_frozen_adapter(make_model, rows, train, weights_of):
    model = in_training(make_model())
    model.freeze_adapter("law")
    start = weights_of(model, "law")
    frozen = r"'law' is frozen(?s:.*)create_adapter\(NAME\)"
    with pytest.raises(AdapterStateError, match=frozen):
        train(model, rows(0), "trainer")
    with pytest.raises(AdapterStateError, match=frozen):
        forward(model, rows(0))
    assert all(torch.equal(value, start[key]) for key, value in weights_of(model, "law").items())


def test_training_without_an_active_adapter(make_model, rows):
    model = make_model()
    model.create_adapter("law")
    with pytest.raises(
        AdapterStateError, match=r"no adapter is active(?s:.*)adapters: \['law'\](?s:.*)set_active_adapter"
    ):
        forward(model, rows(0))


def test_weights_that_name_an_inactive_adapter(make_model):
    model = in_training(make_model())
    model.create_adapter("medicine")
    with pytest.raises(
        AdapterStateError,
        match=r"'medicine' has a weight but is not active(?s:.*)active: \['law'\]"
        r"(?s:.*)set_active_adapters\(\['law', 'medicine'\]\) first",
    ):
        model.set_adapter_weights({"law": 0.7, "medicine": 0.3})


def change_weights(base):
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0


def extend_context(base):
    base.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def lengthen_context(base):
    base.config.max_position_embeddings *= 4


CHANGES = {"weights": change_weights, "rope": extend_context, "context length": lengthen_context}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changing_the_base_under_trained_adapters(make_model, rows, finish, change):
    model = make_model()
    finish(model, "law", rows(0))
    was = model.base_fingerprint
    change(model.get_base_model())
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    with pytest.raises(ModelError, match=r"changed since its adapters were trained(?s:.*)\['law'\]") as error:
        model.enable_constrained_training(True)
    found = re.findall(r"\b[0-9a-f]{64}\b", str(error.value))
    assert len(set(found)) == 2 and was in found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changing_the_base_before_any_adapter_is_no_mistake(make_model, rows, finish, tmp_path, change):
    model = make_model()
    was = model.base_fingerprint
    change(model.base_model)
    in_training(model)
    model.enable_constrained_training(True)
    assert model.base_fingerprint != was
    model.enable_constrained_training(False)
    finish(model, "medicine", rows(0))
    assert model.gradient_memory("medicine").base_fingerprint == model.base_fingerprint


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_loading_adapters_and_memories_on_a_base_that_has_changed(
    make_model, base_folder, rows, finish, tmp_path, tiny_tokenizer, change
):
    model = make_model()
    finish(model, "law", rows(0))
    model.save_adapter(tmp_path / "law", "law")
    other = AutoModelForCausalLM.from_pretrained(base_folder)
    change(other)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    changed = CRMAModel.from_pretrained(CRMAConfig(base_model_name=str(tmp_path / "other"), adapter_dim=4))
    both = rf"another base model(?s:.*){model.base_fingerprint}(?s:.*){changed.base_fingerprint}"
    with pytest.raises(ModelError, match=both):
        CRMAModel.from_pretrained(str(tmp_path / "other"), adapters=[tmp_path / "law"])
    in_training(changed, "medicine")
    with pytest.raises(ModelError, match=both):
        changed.restore_memory("medicine", tmp_path / "law" / MEMORY_FILE)


def test_a_memory_of_other_layers(make_model, rows, finish, tmp_path):
    model = make_model(domain_specific_layers=["q_proj", "v_proj"])
    finish(model, "law", rows(0))
    model.save_adapter(tmp_path / "law", "law")
    other = in_training(make_model(domain_specific_layers=["q_proj", "o_proj"]), "medicine")
    other.create_adapter("law")
    other.restore_memory("law", tmp_path / "law" / MEMORY_FILE)
    with pytest.raises(ModelError) as error:
        other.enable_constrained_training(True)
    assert str(error.value).splitlines() == [
        "the memory of domain 'law' was made for other layers",
        "  Got:      4 layers (q_proj, v_proj), without model.layers.0.self_attn.o_proj",
        "  Expected: 4 layers (o_proj, q_proj)",
        "  Try:      adapt the same layers for every domain",
    ]


def test_a_memory_that_is_not_finite_is_not_made(make_model, rows, train):
    model = in_training(make_model())
    train(model, rows(0), max_steps=1)
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"of domain 'law'(?s:.*)not finite(?s:.*)layers\.\d"):
        model.update_gradient_memory("law")
    assert model.gradient_memory("law") is None


def test_a_memory_that_is_not_finite_is_not_loaded(make_model, rows, finish, tmp_path):
    model = make_model()
    finish(model, "law", rows(0))
    model.save_adapter(tmp_path / "law", "law")
    path = tmp_path / "law" / MEMORY_FILE
    with safe_open(path, "pt") as file:
        tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    broken = next(name for name in tensors if name.startswith("sensitivity:") and name.endswith("values"))
    tensors[broken][0] = float("inf")
    save_file(tensors, path, metadata=facts)
    layer = broken.removeprefix("sensitivity:").removesuffix(".values")
    with pytest.raises(
        WorkspaceError,
        match=rf"memory of domain 'law' is not finite(?s:.*)sensitivity of layer {re.escape(layer)} in",
    ):
        model.load_memory(path)
    assert json.loads(facts["constrained_adapters"])["domain"] == "law"


def test_training_on_after_a_refusal_is_refused_too(make_model, rows, train, weights_of):
    """Else what follows an error that was passed over would be trained without any constraint."""
    model = in_training(make_model())
    train(model, rows(0), max_steps=1)
    model.freeze_adapter("law")
    in_training(model, "medicine")
    with pytest.warns(UserWarning, match="'law' has no gradient memory"):
        model.enable_constrained_training(True)
    wanted = "'law' has no gradient memory, so nothing would protect it"
    with pytest.raises(AdapterStateError, match=wanted):
        model.set_active_adapters(["law", "medicine"])
    start = weights_of(model, "medicine")
    with pytest.raises(AdapterStateError, match=wanted):
        train(model, rows(1), max_steps=1)
    assert all(torch.equal(value, start[key]) for key, value in weights_of(model, "medicine").items())
    model.enable_constrained_training(False)
    train(model, rows(1), max_steps=1)


def test_a_memory_of_the_rows_of_one_of_several_processes(make_model, rows, train, monkeypatch):
    model = in_training(make_model())
    train(model, rows(0), max_steps=1)
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 1}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    with pytest.raises(AdapterStateError, match=r"not be the same in all(?s:.*)1 of 2(?s:.*)rows=\.\.\."):
        model.update_gradient_memory("law")
    given = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows(0)]
    assert model.update_gradient_memory("law", given) is model.gradient_memory("law")

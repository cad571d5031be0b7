"""Bottleneck adapters against their formula, on every kind of layer, and what they leave behind: nothing."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import gelu, relu
from transformers import BloomConfig, BloomForCausalLM

from constrained_adapters.adapters.bottleneck import NAMED, Bottlenecks
from constrained_adapters.adapters.inserted import InsertedModel
from constrained_adapters.errors import AdapterStateError, ConfigError, DataError, ModelError

from .bases import BASES, IDS, make_base, stir


def make(family, base=None, name="law"):
    model = InsertedModel(base if base is not None else make_base(), family, fingerprint="f").eval()
    torch.manual_seed(1)
    model.add(name)
    model.activate([name])
    return model


def expected_logits(model, position, family):
    """A Llama written out, with the adapters in their places."""
    base, own = model.base_model, model.sets[position]
    activation = {"gelu": gelu, "relu": relu}[family.activation]

    def adapted(index, place, read, result):
        if place not in family.places:
            return result
        b = own[f"{index}_{place}"]
        x = read if family.parallel else result
        inner = activation(x @ b.down.weight.T + b.down.bias)
        return result + family.scaling * (inner @ b.up.weight.T + b.up.bias)

    hidden = base.model.embed_tokens(IDS)
    positions = torch.arange(IDS.shape[1])[None].expand(len(IDS), -1)
    rotary = base.model.rotary_emb(hidden, positions)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(len(IDS), 1, -1, -1)
    for index, layer in enumerate(base.model.layers):
        read = layer.input_layernorm(hidden)
        # Not through __call__: the hooks hang there.
        result, _ = layer.self_attn.forward(
            hidden_states=read, position_embeddings=rotary, attention_mask=mask, past_key_values=None
        )
        hidden = hidden + adapted(index, "attention", read, result)
        read = layer.post_attention_layernorm(hidden)
        hidden = hidden + adapted(index, "mlp", read, layer.mlp.forward(read))
    return base.lm_head(base.model.norm(hidden))


@pytest.mark.parametrize(
    "family", [*NAMED.values(), Bottlenecks(width=3, parallel=True, scaling=0.5)], ids=str
)
def test_the_formula_holds_in_float64(family):
    model = make(family)
    stir(model)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected_logits(model, 0, family))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("family", NAMED.values(), ids=NAMED)
def test_every_base_starts_near_what_it_was_and_gets_it_back(kind, family):
    base = make_base(kind)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    plain = base(input_ids=IDS).logits
    model = make(family, base)
    started = (model(input_ids=IDS).logits - plain).detach()
    assert float(started.abs().max()) < (1e-9 if family.parallel else 0.05)
    stir(model)
    assert float((model(input_ids=IDS).logits - plain).detach().abs().max()) > 0.1
    model.activate([])
    assert torch.equal(model(input_ids=IDS).logits, plain)
    model.activate(["law"])
    model.unload()
    assert torch.equal(base(input_ids=IDS).logits, plain)
    assert {name for name, p in base.named_parameters() if p.requires_grad} == set(before)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_where_a_norm_follows_the_adapter_comes_after_it():
    model = make(NAMED["houlsby"], make_base("gemma3"))
    for layer in model.base_model.model.layers:
        assert len(layer.post_attention_layernorm._forward_hooks) == 1
        assert len(layer.post_feedforward_layernorm._forward_hooks) == 1
        assert not layer.self_attn._forward_hooks and not layer.mlp._forward_hooks


def test_several_sets_act_one_after_another():
    model = make(NAMED["pfeiffer"])
    model.add("medicine")
    stir(model, 0), stir(model, 1, seed=3)
    last = model.base_model.model.layers[-1]
    model.activate([])
    heard = []
    handle = last.mlp.register_forward_hook(lambda module, args, output: heard.append(args[0]))
    model.activate(["law", "medicine"])
    model(input_ids=IDS)
    handle.remove()
    y = last.mlp.forward(heard[0])
    for each in model.sets:
        y = y + each["1_mlp"](y)
    hooked = last.mlp(heard[0])
    assert torch.equal(hooked, y)
    model.activate(["medicine", "law"])
    assert not torch.allclose(last.mlp(heard[0]), y)


@pytest.mark.parametrize("family", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_newest_set_only(family, checkpointing):
    model = make(family)
    model.add("medicine")
    stir(model, 0), stir(model, 1, seed=3)
    model.activate(["law", "medicine"])
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in [*model.base_model.parameters(), *model.sets[0].parameters()])
    found = {name: p.grad for name, p in model.sets[1].named_parameters()}
    assert all(float(g.abs().max()) > 0.0 for g in found.values())
    model.base_model.activation_checkpointing_disable()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, p in model.sets[1].named_parameters():
        torch.testing.assert_close(p.grad, found[name])


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("family", NAMED.values(), ids=NAMED)
def test_generation_with_a_cache_writes_what_it_writes_without(kind, family):
    model = make(family, make_base(kind))
    stir(model)
    asked = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "max_new_tokens": 6, "do_sample": False}
    written = model.generate(**asked)
    assert torch.equal(written, model.generate(**asked, use_cache=False))
    model.activate([])
    assert not torch.equal(written, model.generate(**asked))


def test_a_base_in_16_bit_keeps_its_type_and_the_adapters_theirs():
    model = make(NAMED["houlsby"], make_base().bfloat16())
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    assert {p.dtype for p in model.sets.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", NAMED.values(), ids=NAMED)
def test_the_number_of_parameters_is_that_of_the_formula(family):
    d, w, layers = 16, family.width, 2
    assert make(family).num_parameters_of("law") == layers * len(family.places) * (2 * w * d + w + d)


def test_a_set_comes_back_bit_for_bit(tmp_path):
    model = make(NAMED["houlsby"])
    stir(model)
    model.save_set("law", tmp_path / "数学")
    again = InsertedModel(make_base(), NAMED["houlsby"], fingerprint="f").eval()
    again.load_set(tmp_path / "数学", "law")
    again.activate(["law"])
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    facts = json.loads((tmp_path / "数学" / "inserted.json").read_text(encoding="utf-8"))
    assert (facts["kind"], facts["base_fingerprint"], facts["earlier"]) == ("bottleneck", "f", [])


def test_what_does_not_fit_is_not_loaded(tmp_path):
    make(NAMED["houlsby"]).save_set("law", tmp_path)
    with pytest.raises(ModelError, match=r"another base(?s:.*)fingerprint f"):
        InsertedModel(make_base(), NAMED["houlsby"], fingerprint="g").load_set(tmp_path, "law")
    with pytest.raises(ConfigError, match="another kind"):
        InsertedModel(make_base(), NAMED["parallel"], fingerprint="f").load_set(tmp_path, "law")
    model = InsertedModel(make_base(), NAMED["houlsby"], fingerprint="f")
    (tmp_path / "inserted.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        model.load_set(tmp_path, "law")
    (tmp_path / "inserted.json").write_text("{")
    with pytest.raises(DataError, match=r"inserted\.json"):
        model.load_set(tmp_path, "law")
    (tmp_path / "inserted.json").unlink()
    with pytest.raises(DataError, match=r"has no inserted\.json"):
        model.load_set(tmp_path, "law")
    assert model.names == []


def test_names_are_taken_once_and_must_be_there():
    model = make(NAMED["houlsby"])
    with pytest.raises(AdapterStateError, match="already"):
        model.add("law")
    with pytest.raises(AdapterStateError, match="no set named 'la'"):
        model.activate(["la"])


@pytest.mark.parametrize(
    "settings",
    [{"width": 0}, {"places": ()}, {"places": ("head",)}, {"activation": "tanh"}, {"scaling": 0.0}],
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ConfigError, match=f"this {next(iter(settings))}"):
        Bottlenecks(**settings)


def test_a_base_that_adds_its_residual_inside_is_refused():
    base = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=40))
    with pytest.raises(ModelError, match=r"residual(?s:.*)lora and crma fit"):
        InsertedModel(base, NAMED["houlsby"], fingerprint="f")


def test_a_checkpoint_of_training_holds_the_sets_only(tmp_path):
    model = make(NAMED["houlsby"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(state) == {f"sets.0.{name}" for name, _ in model.sets[0].named_parameters()}
    stir(model)
    found = model.load_state_dict(state)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert all(torch.equal(p, state[f"sets.0.{name}"]) for name, p in model.sets[0].named_parameters())

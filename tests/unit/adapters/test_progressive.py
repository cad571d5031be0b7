"""Columns against their formula; earlier ones never change; cache, masks and files."""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

from constrained_adapters.adapters.inserted import InsertedModel
from constrained_adapters.adapters.progressive import Columns
from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.token_tree import TokenSequence, TokenTree, tree_logits

from .bases import BASES, IDS, make_base, stir

FAMILY = Columns(width=8)


def make(names=("law",), base=None, width=8):
    model = InsertedModel(base if base is not None else make_base(), Columns(width), fingerprint="f").eval()
    torch.manual_seed(1)
    for position, name in enumerate(names):
        model.add(name)
        stir(model, position, seed=2 + position)
    model.activate(names[-1:])
    return model


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def lateral(own, sources):
    z = torch.cat([a * rms(x) for a, x in zip(own.alpha, sources, strict=True)], dim=-1)
    return torch.relu(z @ own.down.weight.T) @ own.up.weight.T


def narrow_llama_layer(layer, x, rotary):
    """One head, written out."""
    cos, sin = rotary

    def turned(v):
        half = v.shape[-1] // 2
        return v * cos + torch.cat([-v[..., half:], v[..., :half]], dim=-1) * sin

    def scaled(norm, v):
        return norm.weight * v / (v.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()

    read, own = scaled(layer.input_layernorm, x), layer.self_attn
    q, k, v = turned(own.q_proj(read)), turned(own.k_proj(read)), own.v_proj(read)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    seen = ((q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5).masked_fill(later, float("-inf")).softmax(-1)
    x = x + own.o_proj(seen @ v)
    return x + layer.mlp.forward(scaled(layer.post_attention_layernorm, x))


@torch.no_grad()
def test_the_formula_holds_for_three_columns():
    model = make(("law", "medicine", "history"))
    base, columns = model.base_model, list(model.sets)
    model.activate([])
    output = base.model(input_ids=IDS, output_hidden_states=True)
    rotary = base.model.rotary_emb(output.hidden_states[0], torch.arange(6)[None])
    states = [torch.zeros(2, 6, 8) for _ in columns]
    for index in range(2):
        sources = [output.hidden_states[index], *states]
        reads = [
            state + lateral(column.laterals[index], sources[: position + 1])
            for position, (column, state) in enumerate(zip(columns, states, strict=True))
        ]
        states = [
            narrow_llama_layer(c.layers[index], read, rotary) for c, read in zip(columns, reads, strict=True)
        ]
    for position, name in enumerate(model.names):
        sources = [output.last_hidden_state, *states[:position]]
        said = rms(states[position] + lateral(columns[position].laterals[2], sources))
        expected = base.lm_head(output.last_hidden_state + columns[position].out(said))
        model.activate([name])
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BASES)
def test_an_untrained_column_says_what_the_base_says(kind):
    base = make_base(kind)
    plain = base(input_ids=IDS).logits.detach()
    model = InsertedModel(base, FAMILY, fingerprint="f").eval()
    model.add("law")
    model.activate(["law"])
    assert torch.equal(model(input_ids=IDS).logits, plain)
    stir(model)
    assert float((model(input_ids=IDS).logits - plain).detach().abs().max()) > 0.1
    model.unload()
    assert torch.equal(base(input_ids=IDS).logits, plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_a_finished_domain_is_answered_bit_for_bit_whatever_is_learnt_later():
    model = make(("law",))
    said = model(input_ids=IDS).logits.detach()
    kept = {name: p.detach().clone() for name, p in model.sets[0].named_parameters()}
    model.add("medicine")
    model.activate(["medicine"])
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    assert not torch.equal(model(input_ids=IDS).logits, said)
    model.activate(["law"])
    assert torch.equal(model(input_ids=IDS).logits, said)
    assert all(torch.equal(p, kept[name]) for name, p in model.sets[0].named_parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_all_of_the_newest_column_and_nothing_else(checkpointing):
    model = make(("law", "medicine"))
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in [*model.base_model.parameters(), *model.sets[0].parameters()])
    assert all(float(p.grad.abs().max()) > 0.0 for p in model.sets[1].parameters())


@pytest.mark.parametrize("kind", BASES)
def test_generation_with_a_cache_writes_what_it_writes_without(kind):
    model = make(("law", "medicine"), make_base(kind), width=16)
    asked = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "max_new_tokens": 6, "do_sample": False}
    written = model.generate(**asked)
    assert torch.equal(written, model.generate(**asked, use_cache=False))
    assert torch.equal(
        model.generate(**asked, num_beams=3), model.generate(**asked, num_beams=3, use_cache=False)
    )
    model.activate([])
    assert not torch.equal(written, model.generate(**asked))


def test_a_cache_that_cannot_grow_is_refused():
    model = make()
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ModelError, match=r"StaticCache(?s:.*)DynamicCache"):
        model(input_ids=IDS, past_key_values=cache, use_cache=True)


def test_a_token_tree_is_read_as_its_sequences_are():
    model = make(("law", "medicine"))
    tree = TokenTree()
    rows = [[1, 7, 3, 22, 9], [1, 7, 5, 30, 2]]
    for group, row in enumerate(rows):
        tree.add(group, TokenSequence(row, [4]))
    with torch.no_grad():
        found = tree_logits(model, tree, [pairs[0][0] for _, pairs in tree.members])
        flat = model(input_ids=torch.tensor(rows)).logits[:, 3]
    torch.testing.assert_close(found, flat, rtol=1e-4, atol=1e-4)


def test_a_base_in_16_bit_keeps_its_type_and_the_columns_theirs():
    model = make(base=make_base().bfloat16())
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    assert {p.dtype for p in model.sets.parameters()} == {torch.float32}


def test_the_number_of_parameters_grows_with_what_is_read():
    model = make(("law", "medicine", "history"))
    d, w, layers, inner = 16, 8, 2, 12
    for position, name in enumerate(model.names):
        laterals = (layers + 1) * (position + 1 + (d + position * w) * w + w * w)
        transformer = layers * (4 * w * w + 3 * w * inner + 2 * w)
        assert model.num_parameters_of(name) == laterals + transformer + w * d


def test_columns_come_back_in_their_order_only(tmp_path):
    model = make(("law", "medicine"))
    for name in model.names:
        model.save_set(name, tmp_path / name)
    again = InsertedModel(make_base(), FAMILY, fingerprint="f").eval()
    with pytest.raises(ModelError, match=r"earlier domains(?s:.*)\(none\)"):
        again.load_set(tmp_path / "medicine", "medicine")
    for name in model.names:
        again.load_set(tmp_path / name, name)
    for name in model.names:
        model.activate([name])
        again.activate([name])
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_what_cannot_be_a_column_is_refused():
    with pytest.raises(ConfigError, match="width=0"):
        Columns(width=0)
    base = make_base("gpt2")
    with pytest.raises(ModelError, match=r"GPT2Block of width 17(?s:.*)multiple"):
        make(base=base, width=17)
    base.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="sdpa or eager"):
        make(base=base)

"""Decoder layers are found by what they hold, and their parts by where they meet the residual stream."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from constrained_adapters.errors import ModelError
from constrained_adapters.models.decoder import decoder_layers, decoder_stack


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.attention, self.feed_forward = nn.Identity(), nn.Linear(2, 2), nn.Linear(2, 2)


def tower(**stacks):
    model = nn.Module()
    for name, depth in stacks.items():
        part = nn.Module()
        part.layers = nn.ModuleList(Layer() for _ in range(depth))
        model.add_module(name, part)
    return model


def test_layers_of_llama_are_in_their_order_with_attention_and_mlp(tiny_llama):
    found = decoder_layers(tiny_llama)
    assert [layer.name for layer in found] == ["model.layers.0", "model.layers.1"]
    for layer in found:
        assert (
            layer.sublayers["attention"].begin is layer.sublayers["attention"].end is layer.module.self_attn
        )
        assert layer.sublayers["mlp"].begin is layer.sublayers["mlp"].end is layer.module.mlp
    assert decoder_stack(tiny_llama) is tiny_llama.model


def test_layers_of_gpt2_have_other_names():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32))
    assert [layer.name for layer in decoder_layers(model)] == ["transformer.h.0", "transformer.h.1"]
    assert decoder_stack(model) is model.transformer


def test_a_norm_behind_a_part_is_its_end():
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    layer = decoder_layers(model)[0]
    attention, mlp = layer.sublayers["attention"], layer.sublayers["mlp"]
    assert (attention.begin, attention.end) == (layer.module.self_attn, layer.module.post_attention_layernorm)
    assert (mlp.begin, mlp.end) == (layer.module.mlp, layer.module.post_feedforward_layernorm)


def test_a_norm_is_no_attention_and_another_tower_no_decoder():
    model = tower(vision_tower=3, text=2)
    found = decoder_layers(model)
    assert [layer.name for layer in found] == ["text.layers.0", "text.layers.1"]
    assert found[0].sublayers["attention"].begin is model.text.layers[0].attention


def test_no_decoder_and_two_of_them_are_refused():
    with pytest.raises(ModelError, match="not found"):
        decoder_layers(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="more than one decoder"):
        decoder_stack(tower(first=1, second=1))

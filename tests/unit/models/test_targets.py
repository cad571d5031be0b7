"""Which layers get an adapter, for every architecture named in the documentation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from constrained_adapters.errors import ConfigError, UnknownNameError, UsageError
from constrained_adapters.models.targets import resolve_targets

LAYERS = "model.layers.{}.self_attn.{}"
SPLIT = {"q_proj", "v_proj", "o_proj"}
EXPECTED = {
    "llama": SPLIT,
    "qwen2": SPLIT,
    "qwen3": SPLIT,
    "mistral": SPLIT,
    "mixtral": SPLIT,
    "gemma": SPLIT,
    "gemma2": SPLIT,
    "gemma3_text": SPLIT,
    "olmo2": SPLIT,
    "phi3": {"qkv_proj", "o_proj"},
    "phi": {"q_proj", "v_proj", "dense"},
    "opt": {"q_proj", "v_proj", "out_proj"},
    "gpt2": {"c_attn", "c_proj"},
    "falcon": {"query_key_value", "dense"},
    "gpt_neox": {"query_key_value", "dense"},
    "bloom": {"query_key_value", "dense"},
}


def build(kind: str) -> Any:
    """A model of an architecture without memory for its weights, two layers where that can be set."""
    config = AutoConfig.for_model(kind)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_auto_finds_the_attention_projections(kind: str) -> None:
    names = resolve_targets(build(kind), "auto")
    assert {name.rpartition(".")[2] for name in names} == EXPECTED[kind]
    assert len(names) == 2 * len(EXPECTED[kind]), "nothing outside the attention of two layers"
    assert all("attn" in name or "attention" in name for name in names)


def test_names_are_whole_and_in_the_models_order(tiny_llama: LlamaForCausalLM) -> None:
    assert resolve_targets(tiny_llama, ["v_proj", "q_proj"]) == [
        LAYERS.format(layer, part) for layer in (0, 1) for part in ("q_proj", "v_proj")
    ]
    assert resolve_targets(tiny_llama, ["layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]


def test_layer_subset(tiny_llama: LlamaForCausalLM) -> None:
    assert resolve_targets(tiny_llama, ["q_proj"], [1]) == [LAYERS.format(1, "q_proj")]
    with pytest.raises(ConfigError, match="no decoder layer 2") as caught:
        resolve_targets(tiny_llama, ["q_proj"], [1, 2])
    assert caught.value.expected == "indices from 0 to 1"
    with pytest.raises(ConfigError, match="no decoder layer is chosen"):
        resolve_targets(tiny_llama, ["q_proj"], [])


def test_unknown_name_lists_what_there_is(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_targets(tiny_llama, ["q_proj", "v_prj"])
    assert caught.value.expected == "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert caught.value.hint == "v_proj"


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_embeddings_and_head_are_never_adapted(tiny_llama: LlamaForCausalLM, name: str) -> None:
    with pytest.raises(ConfigError, match="never adapted"):
        resolve_targets(tiny_llama, [name])


def test_nothing_named_and_nothing_found(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match="no layers are named"):
        resolve_targets(tiny_llama, [])
    plain = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no attention"):
        resolve_targets(plain, "auto")

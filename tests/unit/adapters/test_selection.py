"""Which weights are trained: every base, every part, and what is said where there is no such part."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from constrained_adapters.adapters.selection import EVERYTHING, Part, train_only
from constrained_adapters.errors import ConfigError

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def layers(names):
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names if ".layers." in name}


def test_everything_is_every_parameter(llama):
    chosen = train_only(llama)
    assert set(chosen) == trained(llama) == {name for name, _ in llama.named_parameters()}
    assert Part("all") == EVERYTHING


def test_biases_of_qwen2_are_those_of_query_key_and_value():
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    chosen = train_only(model, Part("biases"))
    assert set(chosen) == trained(model)
    assert {name.split(".")[-2] for name in chosen} == {"q_proj", "k_proj", "v_proj"}
    assert sum(p.numel() for p in chosen.values()) == 3 * (16 + 8 + 8)


def test_biases_of_gpt2_are_all_of_them_norms_included():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32))
    chosen = train_only(model, Part("biases"))
    assert {name.split(".")[-2] for name in chosen} == {
        *("ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc"),
    }
    assert all(p.ndim == 1 for p in chosen.values())


def test_a_base_without_biases_says_what_fits(llama):
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM(?s:.*)Qwen2(?s:.*)lora, or bottleneck"):
        train_only(llama, Part("biases"))


def test_the_first_layers_and_the_embeddings_are_frozen(llama):
    names = set(train_only(llama, Part("freeze_first", 2)))
    assert layers(names) == {2}
    assert "model.embed_tokens.weight" not in names
    assert {"model.norm.weight", "lm_head.weight"} <= names


def test_the_last_layers_the_norm_and_the_head_are_frozen(llama):
    names = set(train_only(llama, Part("freeze_last", 1)))
    assert layers(names) == {0, 1}
    assert "model.embed_tokens.weight" in names
    assert not {"model.norm.weight", "lm_head.weight"} & names


def test_training_the_last_is_freezing_the_others(llama):
    assert set(train_only(llama, Part("train_last", 1))) == set(train_only(llama, Part("freeze_first", 2)))
    assert layers(train_only(llama, Part("train_last", 3))) == {0, 1, 2}


@pytest.mark.parametrize("which", ["freeze_first", "freeze_last"])
def test_tied_embeddings_belong_to_both_ends(which):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    assert "model.embed_tokens.weight" not in train_only(model, Part(which, 0))
    assert not model.lm_head.weight.requires_grad


def test_positions_of_gpt2_lie_below_its_layers():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32))
    names = set(train_only(model, Part("freeze_first", 1)))
    assert not {"transformer.wte.weight", "transformer.wpe.weight"} & names
    assert {name.split(".")[2] for name in names if ".h." in name} == {"1"}
    assert "transformer.ln_f.weight" in names


def test_gemma_has_layers_too():
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8))
    assert layers(train_only(model, Part("train_last", 2))) == {1, 2}


@pytest.mark.parametrize(
    "part", [Part("freeze_first", 3), Part("freeze_last", -1), Part("train_last", 0), Part("train_last", 4)]
)
def test_a_number_of_layers_that_is_not_there_is_refused(llama, part):
    with pytest.raises(ConfigError, match=r"a base with 3(?s:.*)Expected: +\d to \d"):
        train_only(llama, part)


def test_only_the_chosen_part_moves_and_is_stored(tmp_path, llama):
    from safetensors.torch import load_file

    from constrained_adapters.training.weights import WeightsLearner, trainable_copy

    own = trainable_copy(llama, Part("train_last", 1))
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    learner = WeightsLearner(own)
    learner.begin(1, "law", [])
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], lr=0.1)
    own(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()
    learner.finish("law", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == trained(own) < set(before)
    for name, parameter in own.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in stored)
    again = WeightsLearner(trainable_copy(llama, Part("train_last", 1)))
    again.resume(1, "law", tmp_path)
    for name, parameter in again.module.named_parameters():
        assert torch.equal(parameter, own.get_parameter(name))

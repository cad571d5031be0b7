"""A tiny random model of each architecture, and a prompt for it."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
IDS = torch.tensor([[1, 7, 3, 22, 9, 4], [0, 0, 5, 30, 2, 11]])
BASES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            **{"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32},
            **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.2},
        )
    ),
}


def make_base(kind="llama"):
    torch.manual_seed(0)
    return BASES[kind]().eval()


@torch.no_grad()
def stir(model, position=0, seed=2):
    generator = torch.Generator().manual_seed(seed)
    for p in model.sets[position].parameters():
        p.copy_(0.3 * torch.randn(p.shape, generator=generator))

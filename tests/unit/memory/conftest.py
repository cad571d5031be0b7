"""A GPT-2 of a few thousand weights, and token rows of unequal length."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        sizes = {"vocab_size": 264, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3}
        config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=2)
        return GPT2LMHeadModel(config).eval()


@pytest.fixture
def rows():
    """Seven rows of 3 to 11 tokens; the first third of each is a prompt; one row has no answer at all."""
    generator = torch.Generator().manual_seed(11)
    made = []
    for length in (7, 3, 11, 5, 9, 4, 8):
        ids = torch.randint(3, 259, (length,), generator=generator).int()
        labels = ids.clone()
        labels[: max(length // 3, 1)] = -100
        if length == 9:
            labels[:] = -100
        made.append((ids, labels))
    return made

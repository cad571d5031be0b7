"""A tiny model that has learnt a tiny domain, its prompts too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.objectives import CrossEntropy, LabelledRow, PromptLearning, Teachers

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

DOMAIN = [
    Example(prompt=f"{word}?", answer=word[::-1]) for word in ("abc", "def", "ghi", "jkl", "mno", "pqr")
]


def learn(model: LlamaForCausalLM, examples, tokenizer, *, prompts: bool, steps: int = 150) -> None:
    """Plain gradient descent on all rows at once, with or without LAMOL's objective."""
    tokens = TokenDataset.from_examples(examples, tokenizer, 64).tokens
    rows = [LabelledRow.of(row) for row in tokens]
    if prompts:
        rows = PromptLearning(0.25).prepare(rows, Teachers(before=lambda: model, untouched=lambda: model))
    count = sum(label != -100 for row in rows for label in row.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in rows])
    places = [(at, position) for at, row in enumerate(rows) for position in row.scored]
    of, position = torch.tensor(places).unbind(-1)
    extras = (
        {"weight": torch.cat([torch.from_numpy(row.extras["weight"]) for row in rows])} if prompts else {}
    )
    for _ in range(steps):
        logits = model(ids).logits[of, position - 1]
        loss = CrossEntropy().loss(logits, ids[of, position], extras) / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


_LEARNT: dict[str, torch.Tensor] = {}
"""Weights of the writer: learnt once in a session, since that takes seconds."""


@pytest.fixture
def writer(tiny_llama, tiny_tokenizer) -> LlamaForCausalLM:
    if not _LEARNT:
        learn(tiny_llama, DOMAIN, tiny_tokenizer, prompts=True)
        _LEARNT.update({name: value.clone() for name, value in tiny_llama.state_dict().items()})
    tiny_llama.load_state_dict(_LEARNT)
    return tiny_llama
